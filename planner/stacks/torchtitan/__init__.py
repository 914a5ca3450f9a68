"""torchtitan: a config function in Python, and its flags, TOML files and logs."""
