"""Schemes: who teaches whom, each a list of phases for the one trainer."""
