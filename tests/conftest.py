"""Started in the background (``nohup``, some CI systems) a process ignores Ctrl-C, and so would the
processes that the tests start and interrupt."""

import signal

signal.signal(signal.SIGINT, signal.default_int_handler)
