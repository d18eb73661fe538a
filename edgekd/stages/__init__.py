"""The chain, one file per stage."""
