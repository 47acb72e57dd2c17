"""Who writes the shards: processes of this machine, a share of them for one job of an array, or Apache Beam."""

import itertools
import multiprocessing
import os
import re
import signal
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool

from data_pipelines.errors import BadInput
from data_pipelines.prepare_shard import ShardJob, write_shard

RUNNERS = ("local", "shard", "beam")
Work = dict[int, list]  # shard -> [(ordinal, Entry)]
Progress = Callable[[int], None]  # called with the number of recordings that have just been done


def run_local(job: ShardJob, todo: Work, workers: int, progress: Progress) -> None:
    """Writes the shards in this process, or in `workers` processes.

    Raises:
        BadInput: processes were killed, also those that were started for what was left; names the unfinished shards.
    """
    if workers == 1:
        for shard, entries in todo.items():
            write_shard(job, shard, entries, lambda n: progress(1))
        return
    # a process that is killed takes the pool with it, whoever killed it: what is left gets fresh ones, once
    left = _in_processes(job, todo, workers, progress)
    if left := _in_processes(job, left, workers, progress) if left else left:
        shown = ", ".join(map(str, list(left)[:10])) + (" ..." if len(left) > 10 else "")
        found = f"worker processes killed from outside, twice ({len(left)} shards are unfinished: {shown})"
        remedy = "give the same command again, it goes on; fewer --workers need less memory"
        raise BadInput(str(job.output), found, "processes that live to the end", remedy)


def _in_processes(job: ShardJob, todo: Work, workers: int, progress: Progress) -> Work:
    """Writes shards in fresh processes; what is left of them where one of these was killed."""
    left = dict(todo)
    # spawn: a forked child would inherit the threads and readers of whoever calls this
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_begin_worker, initargs=(job,)) as pool:
        waiting = iter(todo.items())
        try:
            # few at a time: the queue holds the entries of its shards
            running = {pool.submit(_write, *item): item[0] for item in _take(waiting, 2 * workers)}
            while running:
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    future.result()
                    progress(len(left.pop(running.pop(future))))
                    running |= {pool.submit(_write, *item): item[0] for item in _take(waiting, 1)}
        except BrokenProcessPool:
            return left
        except BaseException:
            pool.shutdown(cancel_futures=True)  # what has begun ends, nothing new begins
            raise
    return left


def run_beam(job: ShardJob, todo: Work, options: list[str], progress: Progress) -> None:
    """Writes the shards with Apache Beam; every worker must see the source's and the store's folder.

    Args:
        options: Beam's own, such as `--runner=FlinkRunner`, `--direct_num_workers=4`.

    Raises:
        BadInput: Beam is not installed, or does not know an option or the runner.
    """
    try:
        import apache_beam as beam
    except ImportError:
        remedy = "pip install 'csfm_jax[beam]', or leave --runner out"
        raise BadInput("--runner=beam", "no Apache Beam", "the extra [beam]", remedy) from None
    with beam.Pipeline(options=_beam_options(options)) as pipeline:
        (
            pipeline
            | beam.Create(list(todo.items()), reshuffle=True)
            | beam.Map(lambda item: write_shard(job, item[0], item[1]))
        )
    progress(sum(map(len, todo.values())))


def _beam_options(words: list[str]):
    """Beam's options, of which it would itself pass over those that it does not know."""
    from apache_beam.options.pipeline_options import PipelineOptions, StandardOptions
    from apache_beam.runners.runner import create_runner

    remedy = "see https://beam.apache.org/documentation/runners/ for those of each runner"
    try:
        options = PipelineOptions(words)
        unknown = options.get_all_options(retain_unknown_options=True).keys() - options.get_all_options().keys()
    except SystemExit:  # of its command line parser, which has said why
        raise BadInput("--beam", " ".join(words), "options and values that Beam takes", remedy) from None
    if unknown:
        raise BadInput("--beam", f"the unknown option {min(unknown)!r}", "options that Beam knows", remedy)
    name = options.view_as(StandardOptions).runner
    try:
        if name:
            create_runner(name)
    except (ValueError, ImportError, AttributeError):
        expected = "DirectRunner, FlinkRunner, SparkRunner, DataflowRunner or another that is installed"
        raise BadInput("--beam", f"the runner {name!r}", expected, remedy) from None
    return options


def share_of(shards: Iterable[int], part: tuple[int, int]) -> list[int]:
    """The shards that job i of n writes."""
    i, n = part
    return [shard for shard in shards if shard % n == i]


def parse_share(text: str | None) -> tuple[int, int]:
    """(i, n) of "i/n", 0 <= i < n; None: of the array job that SLURM says this is.

    Raises:
        BadInput: something else, no such job, or one of an array with gaps.
    """
    if text is None:
        return _slurm_share()
    match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
    if not match or not int(match[1]) < int(match[2]):
        raise BadInput("--shard", repr(text), "i/n with i from 0 to n - 1", "number the jobs from 0")
    return int(match[1]), int(match[2])


def _slurm_share() -> tuple[int, int]:
    names, expected = ("ID", "MIN", "MAX", "STEP", "COUNT"), "i/n: this job's number, from 0, of how many"
    try:
        number, first, last, step, count = (int(os.environ[f"SLURM_ARRAY_TASK_{name}"]) for name in names)
    except (KeyError, ValueError):
        found = "no share, and no SLURM array job"
        raise BadInput("--runner=shard", found, expected, "add --shard=i/n") from None
    # "0-30:10" are four jobs; of "0,1,7" the variables do not tell which is the second
    if step < 1 or (number - first) % step or (last - first) // step + 1 != count or not first <= number <= last:
        found = f"a SLURM array of {count} jobs with gaps between {first} and {last}"
        raise BadInput("--runner=shard", found, expected, "add --shard=i/n, or number the jobs without gaps")
    return (number - first) // step, count


def _take(items, count):
    return list(itertools.islice(items, count))


_job: ShardJob  # of this worker process: a source's tables take seconds to send, and are sent once


def _begin_worker(job: ShardJob) -> None:
    global _job
    _job = job
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole process group; the parent decides


def _write(shard: int, entries: list) -> None:
    write_shard(_job, shard, entries)
