"""Ray Serve LLM with direct streaming, in a process of its own.

    python -m benchmarks.serving.ray_llm ARGUMENTS

ARGUMENTS is a JSON object: model, port, engine (vLLM's arguments) and environment of the replica.

It answers on a loopback port as vLLM's server does, and ends with the process that started it.
The environment must hold ``RAY_SERVE_LLM_ENABLE_DIRECT_STREAMING=1`` and what else
``benchmarks.serving.systems`` sets, because Ray reads it when it is imported.
"""

from __future__ import annotations

import json
import sys

SERVED, STARTED = "base", "started"


def main() -> None:
    """Serve until standard input closes."""
    import ray
    from ray import serve
    from ray.serve.llm import LLMConfig, build_openai_app

    arguments = json.loads(sys.argv[1])
    ray.init(address="local", include_dashboard=False, num_cpus=8, _node_ip_address="127.0.0.1")
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": arguments["port"]})
        config = LLMConfig(
            model_loading_config={"model_id": SERVED, "model_source": arguments["model"]},
            accelerator_config={"kind": "cpu"},
            log_engine_metrics=False,
            deployment_config={"num_replicas": 1, "max_ongoing_requests": 128},
            engine_kwargs=arguments["engine"],
            runtime_env={"env_vars": arguments["environment"]},
        )
        serve.run(build_openai_app({"llm_configs": [config]}))
        print(STARTED, flush=True)
        sys.stdin.read()
    finally:
        serve.shutdown()
        ray.shutdown()


if __name__ == "__main__":
    main()
