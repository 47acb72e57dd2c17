"""Who writes the shards: processes of this machine, a share of them for one job of an array, or Apache Beam."""

import itertools
import multiprocessing
import os
import re
import signal
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait

from data_pipelines.errors import BadInput
from data_pipelines.prepare_shard import ShardJob, write_shard

RUNNERS = ("local", "shard", "beam")
Work = dict[int, list]  # shard -> [(ordinal, Entry)]
Progress = Callable[[int], None]  # called with the number of recordings that have just been done


def run_local(job: ShardJob, todo: Work, workers: int, progress: Progress) -> None:
    """Writes the shards in this process, or in `workers` processes."""
    if workers == 1:
        for shard, entries in todo.items():
            write_shard(job, shard, entries, lambda n: progress(1))
        return
    # spawn: a forked child would inherit the threads and readers of whoever calls this
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_ignore_interrupt) as pool:
        waiting = iter(todo.items())
        # few at a time: the queue holds the entries of its shards
        running = {pool.submit(write_shard, job, *item): len(item[1]) for item in _take(waiting, 2 * workers)}
        try:
            while running:
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    future.result()
                    progress(running.pop(future))
                    running |= {pool.submit(write_shard, job, *item): len(item[1]) for item in _take(waiting, 1)}
        except BaseException:
            pool.shutdown(cancel_futures=True)  # what has begun ends, nothing new begins
            raise


def run_beam(job: ShardJob, todo: Work, options: list[str], progress: Progress) -> None:
    """Writes the shards with Apache Beam; every worker must see the source's and the store's folder.

    Args:
        options: Beam's own, such as `--runner=FlinkRunner`, `--direct_num_workers=4`.

    Raises:
        BadInput: Beam is not installed, or does not know an option.
    """
    try:
        import apache_beam as beam
        from apache_beam.options.pipeline_options import PipelineOptions
    except ImportError:
        remedy = "pip install 'csfm_jax[beam]', or leave --runner out"
        raise BadInput("--runner=beam", "no Apache Beam", "the extra [beam]", remedy) from None
    with beam.Pipeline(options=PipelineOptions(options)) as pipeline:
        (
            pipeline
            | beam.Create(list(todo.items()), reshuffle=True)
            | beam.Map(lambda item: write_shard(job, item[0], item[1]))
        )
    progress(sum(map(len, todo.values())))


def share_of(shards: Iterable[int], part: tuple[int, int]) -> list[int]:
    """The shards that job i of n writes."""
    i, n = part
    return [shard for shard in shards if shard % n == i]


def parse_share(text: str | None) -> tuple[int, int]:
    """(i, n) of "i/n", 0 <= i < n; None: of the array job that SLURM says this is.

    Raises:
        BadInput: something else, or no such job.
    """
    if text is None:
        try:
            first, last = (int(os.environ[f"SLURM_ARRAY_TASK_{name}"]) for name in ("MIN", "MAX"))
            return int(os.environ["SLURM_ARRAY_TASK_ID"]) - first, last - first + 1
        except (KeyError, ValueError):
            found, expected = "no share, and no SLURM array job", "i/n: this job's number, from 0, of how many"
            raise BadInput("--runner=shard", found, expected, "add --shard=i/n") from None
    match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
    if not match or not int(match[1]) < int(match[2]):
        raise BadInput("--shard", repr(text), "i/n with i from 0 to n - 1", "number the jobs from 0")
    return int(match[1]), int(match[2])


def _take(items, count):
    return list(itertools.islice(items, count))


def _ignore_interrupt():
    """Ctrl-C reaches the whole process group; the parent decides."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
