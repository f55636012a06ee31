"""Import-time initialization of setproctitle in the process that vLLM's engine is forked from.

setproctitle locates the command line in memory from the first environment variable, once, on its
first use. If vLLM's import has replaced that variable before, it fails silently and the engine's
process keeps the helper's name. A fork server can import modules but not call functions, so this
module acts on import.
"""

import setproctitle

setproctitle.getproctitle()
