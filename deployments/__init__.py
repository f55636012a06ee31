"""The Ray Serve application: private-LM replicas that are themselves the HTTP ingress.

``engine`` is what a language-model engine must do; ``vllm_engine`` does it with vLLM. ``service`` turns request frames
into completions and knows no HTTP; ``http`` puts it on the network and knows no engine. ``app`` joins them into the
application that Ray Serve runs, from ``settings``.
"""
