"""Networks. Each file offers `default_config()` and `make(config)`: functions on nested dicts."""
