"""vLLM: in the replica (engine, frontend, startup) and in its process (worker, sampling)."""
