"""From a torch module to the layers of a workload."""
