"""Killing a real run over and over, and proving that nothing was lost and nothing came twice."""
