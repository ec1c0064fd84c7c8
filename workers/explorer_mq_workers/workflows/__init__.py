"""Workflows: how a task is rolled out."""
