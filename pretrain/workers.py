"""How a spawned worker process of ours behaves."""

import multiprocessing
import multiprocessing.connection
import os
import signal
import threading


def start_worker() -> None:
    """Call first in a worker process: leaves Ctrl-C to the main process and ends with it, however that ends."""
    # Ctrl-C reaches the whole process group; the main process decides what follows.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # One process a core is the parallelism here: the software GL would start threads of its own.
    os.environ.setdefault("LP_NUM_THREADS", "1")
    # If the main process is killed, its workers would wait for work for ever.
    parent = multiprocessing.parent_process()
    assert parent is not None
    threading.Thread(target=_exit_with, args=(parent.sentinel,), daemon=True).start()


def _exit_with(sentinel: int) -> None:
    multiprocessing.connection.wait([sentinel])
    os._exit(1)
