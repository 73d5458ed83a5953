"""Devices and simulators of devices: what a network costs at given bit-widths. Never imports torch.

The simulators and their files are imported when they are asked for, so that `amed devices` comes at once.
"""

from typing import TYPE_CHECKING

from amed_env.support.lazy import lazy_names

if TYPE_CHECKING:
    from amed_env.hardware.check import check_hardware
    from amed_env.hardware.costs import cost_table, evaluate_cost, evaluate_costs
    from amed_env.hardware.external.isolation import isolated
    from amed_env.hardware.files.config import DeviceConfig, load_device_config, parse_device_config
    from amed_env.hardware.listing import DeviceInfo, list_devices
    from amed_env.hardware.metrics import METRIC_UNITS
    from amed_env.hardware.names import device_names
    from amed_env.hardware.protocol import Capabilities, Cost, CostTable, HardwareBackend, LayerCost
    from amed_env.hardware.registry import load_device, register_hardware
    from amed_env.hardware.simulator.simulator import SystolicBackend
    from amed_env.hardware.simulator.systolic import SramAccesses, gemm_cycles, gemm_sram_accesses
    from amed_env.hardware.tables.lookup_files import csv_text, load_table
    from amed_env.hardware.tables.lookup_table import LookupTable, TableBackend, build_table

_LAZY = {
    "check_hardware": "amed_env.hardware.check",
    **dict.fromkeys(("cost_table", "evaluate_cost", "evaluate_costs"), "amed_env.hardware.costs"),
    "isolated": "amed_env.hardware.external.isolation",
    **dict.fromkeys(("DeviceConfig", "load_device_config", "parse_device_config"), "amed_env.hardware.files.config"),
    **dict.fromkeys(("DeviceInfo", "list_devices"), "amed_env.hardware.listing"),
    "METRIC_UNITS": "amed_env.hardware.metrics",
    "device_names": "amed_env.hardware.names",
    **dict.fromkeys(
        ("Capabilities", "Cost", "CostTable", "HardwareBackend", "LayerCost"),
        "amed_env.hardware.protocol",
    ),
    **dict.fromkeys(("load_device", "register_hardware"), "amed_env.hardware.registry"),
    "SystolicBackend": "amed_env.hardware.simulator.simulator",
    **dict.fromkeys(("SramAccesses", "gemm_cycles", "gemm_sram_accesses"), "amed_env.hardware.simulator.systolic"),
    **dict.fromkeys(("csv_text", "load_table"), "amed_env.hardware.tables.lookup_files"),
    **dict.fromkeys(("LookupTable", "TableBackend", "build_table"), "amed_env.hardware.tables.lookup_table"),
}

__all__ = [
    "METRIC_UNITS",
    "Capabilities",
    "Cost",
    "CostTable",
    "DeviceConfig",
    "DeviceInfo",
    "HardwareBackend",
    "LayerCost",
    "LookupTable",
    "SramAccesses",
    "SystolicBackend",
    "TableBackend",
    "build_table",
    "check_hardware",
    "cost_table",
    "csv_text",
    "device_names",
    "evaluate_cost",
    "evaluate_costs",
    "gemm_cycles",
    "gemm_sram_accesses",
    "isolated",
    "list_devices",
    "load_device",
    "load_device_config",
    "load_table",
    "parse_device_config",
    "register_hardware",
]

__getattr__ = lazy_names(__name__, _LAZY)
