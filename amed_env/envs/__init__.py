"""The environments; importing this package registers them with Gymnasium."""

from gymnasium.envs.registration import register, registry

LAYER_WISE = "AMED/LayerWise-v0"
ONE_SHOT = "AMED/OneShot-v0"
RANDOM_WALK = "AMED/RandomWalk-v0"

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
