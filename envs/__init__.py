"""MuJoCo manipulation tasks behind one Gymnasium contract.

`make_env` (envs/tasks.py) makes one of `TASKS`; `VectorEnv` (envs/vector.py) steps many in parallel; `Renderer` (envs/rendering.py) draws any scene.
"""
