"""Imported by the server that workers are forked from before all else: Ctrl-C while it imports, which takes seconds,
ends it at once and without a traceback. When it serves it passes Ctrl-C by."""

import signal

signal.signal(signal.SIGINT, signal.SIG_DFL)
