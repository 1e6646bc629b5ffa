"""Settings of the experiments: one file each, `get_config(variant)`."""
