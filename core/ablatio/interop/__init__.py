"""Models of other libraries: export to transformers, families of native configs, PEFT adapters."""
