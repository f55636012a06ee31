"""Imported first by the helper process that the engine is forked from, so that the engine can name itself.

vLLM names its processes (``VLLM::EngineCore``) with setproctitle, which looks for the memory of the command line right
before that of the first environment variable, once, when it is first used. vLLM sets variables as it is imported; where
one of them happens to be the first, setproctitle would find nothing afterwards, and say nothing. So it looks now.
"""

import setproctitle

setproctitle.getproctitle()
