"""Where jobs run: in this process, in one process per device, on a Ray cluster, as Slurm jobs.

A launcher is a generator: it takes chains of jobs (a training, and what evaluates it) and yields
each chain with its outcomes as it ends, or with a sentence if its process died. Closing it, or
Ctrl-C in it, stops everything that it started. All call
:func:`proxyfda.experiments.jobs.run_chain`, so they write the same files, and one goes on where
another was stopped.
"""

from __future__ import annotations

import concurrent.futures as futures
import functools
import importlib
import multiprocessing
import os
import os.path as osp
import queue
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import resource_tracker, synchronize, util

import proxyfda
from proxyfda.experiments import lock
from proxyfda.experiments.jobs import FAILED, Job, Outcome, run_chain
from proxyfda.utils.errors import BadValue, NotInstalled

Chain = list[Job]
Ended = Iterator[tuple[Chain, "list[Outcome] | str"]]
CPU = "cpu"


def here(chains: list[Chain], quiet: bool = False) -> Ended:
    """In this process; ``quiet`` leaves what the jobs print to the runs' logs."""
    for chain in chains:
        yield chain, run_chain(chain, quiet)


# -- one process per device -----------------------------------------------------------------------


def at_once(launcher: str, workers: int, devices: str) -> int:
    """How many jobs run at a time: on a cluster taken to be as many as one device is given."""
    return workers * (len(local_devices(devices)) if launcher == "local" else 1)


def local_devices(words: str = "") -> list[str]:
    """Devices to use: those of ``0,1`` or ``cpu``, by default all GPUs that can be seen.

    Raises:
        ValueError: for other words, or GPUs where there is none.
    """
    if words == CPU:
        return [CPU]
    import torch

    seen = os.environ.get("CUDA_VISIBLE_DEVICES")
    count = torch.cuda.device_count()
    if not words:
        names = seen.split(",") if seen else [str(i) for i in range(count)]
        return names[:count] or [CPU]
    names = words.split(",")
    if not all(name.isdigit() or name.startswith(("GPU-", "MIG-")) for name in names):
        raise BadValue(f"--devices is {words!r}; use GPU numbers joined by commas, or cpu")
    if not count:
        raise BadValue(f"--devices is {words}, but PyTorch finds no GPU; use --devices cpu")
    return names


def see_alone(devices: list[str], workers: int) -> None:
    """Let this process see one device alone where it runs all jobs on that one by itself; to be
    called before anything works on a device."""
    if workers * len(devices) == 1:
        os.environ["CUDA_VISIBLE_DEVICES"] = "" if devices == [CPU] else devices[0]


def on_devices(devices: list[str], workers: int, quiet: bool) -> Callable[[list[Chain]], Ended]:
    """The launcher of ``workers`` jobs at a time on each device: this process for one in all.

    Args:
        quiet: see :func:`here`.
    """
    if workers * len(devices) == 1:
        return functools.partial(here, quiet=quiet)
    return functools.partial(local, devices=devices, workers=workers)


class _Slot:
    """A process on one device, started when needed, and anew after a failure in it."""

    def __init__(self, device: str, threads: int):
        self._start = (device, threads, os.getpid())
        self._pool: futures.ProcessPoolExecutor | None = None

    def run(self, chain: Chain) -> list[Outcome] | str:
        if self._pool is None:
            spawn = multiprocessing.get_context("spawn")  # CUDA does not survive a fork
            self._pool = futures.ProcessPoolExecutor(
                1, mp_context=spawn, initializer=_start_worker, initargs=self._start
            )
        try:
            outcomes = self._pool.submit(run_chain, chain, True).result()
        except BrokenProcessPool:
            self.close()
            return "its process died (killed, or out of memory)"
        if any(outcome.status == FAILED for outcome in outcomes):
            self.close()  # an error on a GPU can spoil what follows it
        return outcomes

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=False)
        self._pool = None


def local(chains: list[Chain], devices: list[str], workers: int) -> Ended:
    """In ``workers`` processes per device."""
    # On the CPU the thread count is part of what a number depends on: one, whatever the machine.
    torch_threads = 1 if devices == [CPU] else 0
    slots = [_Slot(device, torch_threads) for device in devices for _ in range(workers)]
    free: queue.SimpleQueue[_Slot] = queue.SimpleQueue()
    for slot in slots:
        free.put(slot)
    closing = threading.Event()

    def work(chain: Chain) -> list[Outcome] | str:
        _leave_interrupts_to_parent()
        slot = free.get()
        try:
            return "stopped" if closing.is_set() else slot.run(chain)
        finally:
            free.put(slot)

    threads = futures.ThreadPoolExecutor(len(slots))
    waiting = {threads.submit(work, chain): chain for chain in chains}
    try:
        for future in futures.as_completed(waiting):
            yield waiting[future], future.result()
    finally:
        closing.set()
        threads.shutdown(wait=False, cancel_futures=True)
        while not all(future.done() for future in waiting):
            for process in multiprocessing.active_children():
                process.terminate()
            futures.wait(waiting, timeout=0.2)
        for slot in slots:
            slot.close()


def _leave_interrupts_to_parent() -> None:
    """Processes that this thread starts do not see Ctrl-C, which a terminal sends to all."""
    # Started with the first process otherwise, and then it takes the block away.
    resource_tracker.ensure_running()
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})


def _start_worker(device: str, threads: int, parent: int) -> None:
    signal.signal(signal.SIGTERM, _leave)
    # A parent that was killed cannot end its workers: they look after it.
    threading.Thread(target=_leave_with, args=(parent,), daemon=True).start()
    os.environ["CUDA_VISIBLE_DEVICES"] = "" if device == CPU else device
    if threads:
        import torch

        torch.set_num_threads(threads)


def _leave(*_) -> None:
    # Not by an exception: the executor would take it for the job's and go on.
    lock.release_all()
    # Those that read images: left alone they would stay for seconds, and print that we are gone.
    for child in multiprocessing.active_children():
        child.kill()
    _give_semaphores_back()
    os._exit(1)


def _give_semaphores_back() -> None:
    """Without it the parent's tracker would warn of those of progress bars and loaders."""
    # No other finaliser: one could wait for a lock that this very thread holds.
    for finaliser in list(getattr(util, "_finalizer_registry", {}).values()):
        if getattr(finaliser, "_callback", None) == synchronize.SemLock._cleanup:
            finaliser()


def _leave_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    _leave()


# -- several machines -----------------------------------------------------------------------------
# They have to see the repository, the data and the output under the same paths.


def _remote_chain(chain: Chain) -> list[Outcome]:
    """A chain on another machine, with the numbers of ``local`` on the CPU."""
    import torch

    if not torch.cuda.is_available():
        torch.set_num_threads(1)
    return run_chain(chain, quiet=True)


def _import(name: str, launcher: str):
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise NotInstalled(
            f"--launcher {launcher} needs {name}, which cannot be imported ({error}): "
            f"pip install {name}"
        ) from None


def _python_path(paths: Sequence[str]) -> str:
    package = osp.dirname(osp.dirname(osp.abspath(proxyfda.__file__)))
    inherited = filter(None, [os.environ.get("PYTHONPATH")])
    return os.pathsep.join(dict.fromkeys([*paths, package, *inherited]))


def on_ray(chains: list[Chain], options: dict, paths: Sequence[str] = ()) -> Ended:
    """As tasks of a Ray cluster.

    Args:
        options: ``address`` of a running cluster (default: ``RAY_ADDRESS``, else this machine
            alone), ``gpus`` and ``cpus`` of a chain (default: one GPU where the cluster has any,
            and one CPU); 0.5 lets two share a GPU.
        paths: folders that the jobs' entry modules are imported from.

    Raises:
        ImportError: Ray is not installed.
        ValueError: an option that is none of these, or more GPUs than any machine has.
    """
    ray = _import("ray", "ray")
    options = dict(options)
    address = options.pop("address", None)
    environment = {"PYTHONPATH": _python_path(paths)}
    if "PROXYFDA_ENGINE" in os.environ:
        environment["PROXYFDA_ENGINE"] = os.environ["PROXYFDA_ENGINE"]
    started = not ray.is_initialized()
    if started:
        ray.init(address=address, log_to_driver=False, logging_level="warning")
    waiting: dict = {}
    try:
        most = max(node["Resources"].get("GPU", 0) for node in ray.nodes() if node["Alive"])
        gpus, cpus = options.pop("gpus", min(most, 1)), options.pop("cpus", 1)
        if options:
            raise BadValue(
                f"{', '.join(options)} is no option of --launcher ray; use address, gpus, cpus"
            )
        if gpus > most:
            raise BadValue(
                f"no machine of the Ray cluster has {gpus:g} GPUs, at most {most:g}; give gpus="
            )
        task = ray.remote(_remote_chain).options(
            num_gpus=gpus, num_cpus=cpus, max_retries=0, runtime_env={"env_vars": environment}
        )
        waiting = {task.remote(chain): chain for chain in chains}
        while waiting:
            ready, _ = ray.wait(list(waiting), timeout=1.0)
            for reference in ready:
                chain = waiting.pop(reference)
                try:
                    yield chain, ray.get(reference)
                except ray.exceptions.RayError as error:
                    yield chain, f"its Ray task ended ({_first_line(error)})"
    finally:
        # First as Ctrl-C does, so that locks are given back.
        for force in (False, True):
            for reference in waiting:
                ray.cancel(reference, force=force)
            if waiting and not force:
                ray.wait(list(waiting), num_returns=len(waiting), timeout=5.0)
        if started:
            ray.shutdown()


class _SlurmTask:
    """A chain as submitit calls it; what Slurm stops for its time limit is queued again."""

    def __call__(self, chain: Chain) -> list[Outcome]:
        signal.signal(signal.SIGTERM, _leave)  # as scancel ends a job
        return _remote_chain(chain)

    def checkpoint(self, chain: Chain):
        from submitit.helpers import DelayedSubmission

        lock.release_all()
        return DelayedSubmission(self, chain)


def on_slurm(chains: list[Chain], options: dict, folder: str, paths: Sequence[str] = ()) -> Ended:
    """As a Slurm job array, one element per chain.

    Args:
        options: parameters of ``submitit.AutoExecutor``, such as ``slurm_partition``; by default
            one GPU, 8 CPUs and a day. ``cluster=local`` runs all here at once, without Slurm.
        folder: where submitit keeps its files and the output of the tasks.
        paths: folders that the jobs' entry modules are imported from.

    Raises:
        ImportError: submitit is not installed.
    """
    submitit = _import("submitit", "slurm")
    ended = (submitit.core.utils.UncompletedJobError, submitit.core.utils.FailedJobError)
    options = {"timeout_min": 1440, "cpus_per_task": 8, "gpus_per_node": 1, **options}
    os.environ["PYTHONPATH"] = _python_path(paths)
    try:
        # Without a cluster named, submitit would start all at once on a machine without Slurm.
        executor = submitit.AutoExecutor(folder=folder, cluster=options.pop("cluster", "slurm"))
        executor.update_parameters(name="proxyfda", **options)
        with executor.batch():
            tasks = [executor.submit(_SlurmTask(), chain) for chain in chains]
    except (RuntimeError, NameError, TypeError, ValueError, OSError) as error:
        raise BadValue(f"--launcher slurm cannot submit: {_first_line(error)}") from None
    waiting = dict(zip(tasks, chains))
    try:
        while waiting:
            for task in [task for task in waiting if task.done()]:
                chain = waiting.pop(task)
                try:
                    yield chain, task.result()
                except ended:
                    yield chain, f"its Slurm job {task.job_id} ended (see {task.paths.stderr})"
            time.sleep(1.0)
    finally:
        for task in waiting:
            task.cancel()


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).strip() or 'no message').splitlines()[0]}"
