"""Files, caches, processes and registries: nothing here knows what is quantized."""
