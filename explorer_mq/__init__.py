"""explorer-mq: the exploring half of reinforcement fine-tuning as message-queue driven actors."""

__version__ = "0.1.0"
