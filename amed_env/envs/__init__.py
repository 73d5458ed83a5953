"""The environments; importing this package registers them with Gymnasium.

The classes are imported when they are asked for, so that `import amed_env` stays quick.
"""

from typing import TYPE_CHECKING

from gymnasium.envs.registration import register, registry

from amed_env.support.lazy import lazy_names

if TYPE_CHECKING:
    from amed_env.envs.continuous import ContinuousWidths
    from amed_env.envs.layer_wise import LayerWiseEnv
    from amed_env.envs.one_shot import OneShotEnv
    from amed_env.envs.random_walk import RandomWalkEnv
    from amed_env.envs.vectorized import LayerWiseVectorEnv
    from amed_env.envs.wrappers import VectorReward

LAYER_WISE = "AMED/LayerWise-v0"
ONE_SHOT = "AMED/OneShot-v0"
RANDOM_WALK = "AMED/RandomWalk-v0"

_LAZY = {
    "ContinuousWidths": "amed_env.envs.continuous",
    "LayerWiseEnv": "amed_env.envs.layer_wise",
    "LayerWiseVectorEnv": "amed_env.envs.vectorized",
    "OneShotEnv": "amed_env.envs.one_shot",
    "RandomWalkEnv": "amed_env.envs.random_walk",
    "VectorReward": "amed_env.envs.wrappers",
}

__all__ = [
    "LAYER_WISE",
    "ONE_SHOT",
    "RANDOM_WALK",
    "ContinuousWidths",
    "LayerWiseEnv",
    "LayerWiseVectorEnv",
    "OneShotEnv",
    "RandomWalkEnv",
    "VectorReward",
]

if LAYER_WISE not in registry:
    register(
        id=LAYER_WISE,
        entry_point="amed_env.envs.layer_wise:LayerWiseEnv",
        vector_entry_point="amed_env.envs.vectorized:make_layer_wise_vector",
    )
if ONE_SHOT not in registry:
    register(id=ONE_SHOT, entry_point="amed_env.envs.one_shot:OneShotEnv")
if RANDOM_WALK not in registry:
    register(id=RANDOM_WALK, entry_point="amed_env.envs.random_walk:RandomWalkEnv")

__getattr__ = lazy_names(__name__, _LAZY)
