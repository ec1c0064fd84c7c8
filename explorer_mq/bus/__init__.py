"""Everything that speaks NATS; the only importer of ``nats``."""
