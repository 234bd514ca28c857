"""Input pipelines. Each module has `make(config) -> grain.IterDataset` and `spec(config) -> shapes
of one batch`."""
