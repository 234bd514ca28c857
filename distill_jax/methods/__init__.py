"""Methods, one file each: `make(config) -> Method`. A method is named in a config by its file, as
in "llm.kd"."""
