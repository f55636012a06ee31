"""vLLM as an engine: the replica's side (engine, frontend, startup) and the engine process's (worker, sampling)."""
