"""The command line `bigr`: one small file per command."""
