"""The environments; importing this package registers them with Gymnasium."""

from gymnasium.envs.registration import register, registry

LAYER_WISE = "AMED/LayerWise-v0"
ONE_SHOT = "AMED/OneShot-v0"

for _name, _entry_point in {LAYER_WISE: "layer_wise:LayerWiseEnv", ONE_SHOT: "one_shot:OneShotEnv"}.items():
    if _name not in registry:
        register(id=_name, entry_point=f"amed_env.envs.{_entry_point}")
