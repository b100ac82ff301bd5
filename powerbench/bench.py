"""What happens in the measuring process: contestants of one problem are opened, sampled in turns, and closed.

`open` makes a case's inputs, gates it, warms it up and makes its timer; `sample` takes samples; `close` re-checks the
results and times the phases. Whatever a contestant raises is answered as a `Fault`, which ends its case and no other.
The decisions (what next, when to stop) are `powerbench.runner`'s, which asks from another process.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from statistics import fmean, median

import msgspec
import torch

from powerbench import gate, timing
from powerbench.device import Device
from powerbench.errors import first_line, in_words
from powerbench.inputs import Guard, Variation, digest, make_inputs
from powerbench.kernels.kernel import Decoder, Forward, Inputs, Kernel, Reference
from powerbench.problem import Case, Params, Problem
from powerbench.protocol import Closed, Fault, Opened, Reply, Sampled, Spoilt, Verb
from powerbench.results.model import Phase
from powerbench.telemetry import UNAVAILABLE, Gauge, Reading, over
from powerbench.timing import Method, Policy, Timer, time_call

# Phases explain a time and are not ranked by theirs: half the samples, so that they cost less than the case itself.
PHASE_POLICY = Policy(min_seconds=0.2, max_samples=50)
LEFT_MS, LEFT_SHARE = 0.1, 0.1  # of a sample: what other streams may go on for after it
NANOSECOND_DIGITS = 6  # of ms: what clocks resolve, so that files hold no digits without meaning


@dataclass(frozen=True)
class _Trial:
    """A case that has been through the gate: how to make what is timed, and how to check it again afterwards.

    `cycle`: of so many calls the mean is a sample, because their work is not the same.
    """

    gated: gate.Gated
    make: Callable[[], Callable[[], object]]
    decoder: Decoder | None = None
    cycle: int = 1


@dataclass(frozen=True)
class _Held:
    """What the last timed call returned, by what it differs from the gated results, and its bits at that time."""

    results: tuple[torch.Tensor, ...]
    factors: tuple[torch.Tensor, ...]
    digests: tuple[tuple[torch.Tensor, ...], ...]


@dataclass
class _Live:
    """What an opened case holds on the device."""

    trial: _Trial
    timer: Timer
    held: _Held | None = None


@dataclass
class Bench:
    """The contestants that live in this process, with the inputs they share."""

    device: Device
    seed: int
    kernels: Mapping[str, Kernel]
    method: Method
    gauge: Gauge = Reading  # which has nothing to read
    _inputs: Inputs | None = None
    _made_for: tuple[Problem, bool] | None = None  # whether for decoding
    _live: dict[str, _Live] = field(default_factory=dict)
    _prepared: dict[str, Forward] = field(default_factory=dict)  # so that what compiled or tuned in one visit is kept
    _guard: Guard | None = None
    _suspects: set[str] = field(default_factory=set)  # who has run since the inputs were last looked at as a whole
    _references: dict[tuple[Reference, Params], torch.Tensor] = field(default_factory=dict)  # of these inputs' decoding

    def answer(self, verb: Verb, case: Case, argument: int | bool, seed: int = 0) -> Reply:
        """Do what the runner asks for: open (argument: timed), sample (how many) or close (with phases).

        By `seed` is drawn what is checked; the parent draws it when it asks (`powerbench.protocol.Question`).
        """
        self._suspects.add(case.case_id)
        reply = self._attempt(verb, case, argument, seed)
        reply = self._blamed(verb, case) or reply
        if not isinstance(reply, Fault):
            return reply
        self._live.pop(case.case_id, None)
        self._prepared.pop(case.case_id, None)
        lost = reply.lost or (self.device.type == "cuda" and _is_lost())
        return Fault(reply.status, reply.message, reply.error, reply.tolerance, lost)

    def _attempt(self, verb: Verb, case: Case, argument: int | bool, seed: int) -> Reply:
        verbs = {"open": self._open, "sample": self._sample, "close": self._close}
        try:
            return verbs[verb](case, argument, seed)
        except gate.RefusedError as error:
            return Fault("wrong", str(error))
        except (torch.OutOfMemoryError, MemoryError) as error:
            return Fault("oom", first_line(error))
        except Exception as error:  # a contestant is other people's code and may raise anything; its row says what
            message = in_words(error)
            out_of_memory = "can't allocate memory" in message  # how torch's CPU allocator says it: a RuntimeError
            return Fault("oom", first_line(error)) if out_of_memory else Fault("failed", message)

    def _blamed(self, verb: Verb, case: Case) -> Reply | None:
        """The answer in the place of its own, where the inputs of all were written to; None: they were not.

        This process then ends, for samples of others may have been taken on what was written: all begin again.
        """
        if self._guard is None:
            return None
        try:
            written = self._guard.quick()
            sure = bool(written) or self._suspects == {case.case_id}
            if not written and verb != "sample":
                written = self._guard.thorough()
                self._suspects.clear()
        except Exception:  # the device is gone, or what was a tensor is none: the answer says what it can
            return None
        if not written:
            return None
        self._inputs = self._guard = None
        names = ", ".join(written)
        if sure:
            return Fault("wrong", f"it changed the inputs of all contestants in place: {names}", lost=True)
        return Spoilt(names)

    def _open(self, case: Case, timed: bool, seed: int) -> Reply:
        wanted = (case.problem, case.pass_ == "decode")
        if self._made_for != wanted or self._inputs is None:
            self._live.clear()
            self._references.clear()
            self._inputs = self._guard = None  # freed before the next ones are made
            self._inputs = make_inputs(case.problem, self.device.torch, self.seed, decoding=wanted[1])
            self._guard = Guard(self._inputs, decoding=wanted[1])
            self._suspects = {case.case_id}
            self._made_for = wanted
        kernel, inputs, device = self.kernels[case.kernel], self._inputs, self.device.torch
        held = _allocated_bytes(device) - _size(inputs)  # by the other contestants, whose memory is not this one's
        trial = self._decoding(case, inputs) if wanted[1] else self._attending(case, inputs)
        error, allowed = trial.gated.error, gate.tolerance(case)
        if not error <= allowed:
            message = f"relative error {error:.2g} against the float64 reference, {allowed:.2g} allowed"
            return Fault("wrong", message, error, allowed)
        config = {} if kernel.gated or not case.problem.gated else {"gates": "none: this kernel has no gates"}
        if not timed:
            fault = self._recheck(case, trial, trial.make(), seed, None)
            return fault or Opened(error, allowed, config)
        call = trial.make()
        peak = self.device.peak_memory_bytes(call)  # also the warm-up: what compiles or tunes does it here or above
        wall = self.device.type == "cuda" and self.method.mode != "wall"
        wall_ms = timing.wall_beside(call, device, self.method.l2) if wall else ()
        del call  # with the graph of a backward pass, before the timer makes its own
        timer = timing.timer(trial.make, device, self.method)
        self._live[case.case_id] = _Live(trial, timer)
        peak = None if peak is None else peak - held
        return Opened(error, allowed, config, timer.name, timer.reason, _rounded(wall_ms), peak)

    def _attending(self, case: Case, inputs: Inputs) -> _Trial:
        """The passes over a whole context."""
        kernel = self.kernels[case.kernel]
        forward = self._prepared.get(case.case_id) or kernel.prepare(case)
        self._prepared[case.case_id] = forward
        gated = gate.check(kernel, case, inputs, forward, self.seed)
        return _Trial(gated, partial(timed_call, kernel, case, inputs, forward))

    def _decoding(self, case: Case, inputs: Inputs) -> _Trial:
        """One step. All sequences are checked, so that there is nothing to draw."""
        kernel = self.kernels[case.kernel]
        assert kernel.decoding
        with torch.no_grad():
            decoder = kernel.decoding.prepare(case, inputs)
            gated = gate.check_decoding(inputs, decoder, self._decoding_reference(case, inputs))

        return _Trial(gated, lambda: torch.no_grad()(decoder.step), decoder, decoder.cycle)

    def _decoding_reference(self, case: Case, inputs: Inputs) -> torch.Tensor:
        """Made once for all contestants of the same function: it reads all of the context in float64."""
        kernel = self.kernels[case.kernel]
        params = msgspec.structs.replace(case.params, d_tile=None, chunk_size=None)  # which change no result
        function = kernel.reference, params
        if function not in self._references:
            self._references[function] = gate.decoding_reference(kernel, case, inputs)
        return self._references[function]

    def _sample(self, case: Case, number: int, seed: int) -> Reply:
        live, readings = self._live[case.case_id], []
        timer, cycle = live.timer, live.trial.cycle
        live.held = None  # its memory is for the calls that follow
        assert self._inputs
        assert self._guard
        if number > 1:
            timer.run()  # caches as this contestant leaves them; a call so long that it is sampled singly fills its own
            readings.append(self._read())  # a GPU is still at work on that call
        ms, after = [], []
        with Variation(case, self._inputs, self._guard, seed) as variation:
            for _ in range(number):
                taken, cycle_ms = None, []
                for _ in range(cycle):
                    taken = None  # what a call returned is freed before the next one, outside the clock
                    if live.trial.decoder is None:  # whose cache or state holds v as it was
                        variation.once()
                    taken = timer.sample()
                    cycle_ms.append(taken.ms)
                    after.append(taken.after_ms)
                ms.append(fmean(cycle_ms))
            readings.append(self._read())  # at once: its clock outlasts the load by little
            if live.trial.decoder is None and taken:
                results = gate.plain_results(taken.result, case, self._inputs)
                live.held = _Held(results, variation.factors(), tuple(map(digest, results)))
        if median(after) > LEFT_MS + LEFT_SHARE * median(ms):
            message = f"the device worked on for {median(after):.3g} ms after a timed call of {median(ms):.3g} ms"
            return Fault("wrong", f"{message}: on another stream, so that not all of it was timed")
        return Sampled(_rounded(ms), over(readings), cycle)

    def _read(self) -> Reading:
        """Outside every clock."""
        try:
            return self.gauge()
        except Exception:  # whatever a driver makes of it: a reading is not worth a case
            return UNAVAILABLE

    def _close(self, case: Case, phases: bool, seed: int) -> Reply:
        live = self._live.pop(case.case_id)
        assert self._inputs
        fault = self._recheck(case, live.trial, live.timer.run, seed, live.held)
        if fault:
            return fault
        del live  # and with it the graph of a backward pass, before the phases make buffers of their own
        timed = _time_phases(self.kernels[case.kernel], case, self._inputs, self) if phases else ()
        failed = any(phase.message for phase in timed)
        return Closed(timed, failed and self.device.type == "cuda" and _is_lost())

    def _recheck(
        self, case: Case, trial: _Trial, run: Callable[[], object], seed: int, held: _Held | None
    ) -> Fault | None:
        """What a timed call returned (`held`), and what a call on changed inputs returns, at rows drawn by `seed`."""
        assert self._inputs
        assert self._guard
        inputs, allowed = self._inputs, gate.tolerance(case)
        if held and not all(map(_is_same, map(digest, held.results), held.digests)):
            return Fault("wrong", "what a timed call returned was written to later: not all of it was timed")
        with Variation(case, inputs, self._guard, seed) as variation:
            if trial.decoder:
                error = self._run_decoder(inputs, trial, run, variation)
            else:
                rows = gate.drawn_rows(case.problem, seed).to(inputs.q.device)
                wanted = gate.truth(self.kernels[case.kernel], case, inputs, rows)
                errors = [gate.off(case, held.results, held.factors, trial.gated, rows, wanted)] if held else []
                variation.everywhere()
                factors = variation.factors()
                masked = "bwd" in case.pass_
                with variation.only(rows) if masked else nullcontext():
                    gate.poison(inputs)
                    results = gate.plain_results(run(), case, inputs)
                errors.append(gate.off(case, results, factors, None if masked else trial.gated, rows, wanted))
                error = max(errors, key=lambda error: (math.isnan(error), error))
        if error <= allowed:
            return None
        message = f"after timing, on changed inputs, off by {error:.2g}, {allowed:.2g} allowed"
        why = "stale, not repeatable, computed for some rows only, or not all of it was timed"
        return Fault("wrong", f"{message}: {why}", error, allowed)

    def _run_decoder(self, inputs: Inputs, trial: _Trial, run: Callable[[], object], variation: Variation) -> float:
        """With v changed in cache or state and in the new token, made ready once more, y has to follow."""
        assert trial.decoder
        variation.everywhere()
        with torch.no_grad():
            trial.decoder.reset()
            gate.poison(gate.token(inputs))
            y = gate.plain(run(), tuple(inputs.dy.shape), inputs.q.device)
        return gate.decoding_off(y, variation.factors()[0], trial.gated)


def _is_same(now: tuple[torch.Tensor, ...], was: tuple[torch.Tensor, ...]) -> bool:
    return all(map(torch.equal, now, was))


def _time_phases(kernel: Kernel, case: Case, inputs: Inputs, bench: Bench) -> tuple[Phase, ...]:
    """Each launch by itself. One that raises says why in its place, and costs neither the others nor the case."""
    assert kernel.phases
    names = list(dict.fromkeys(launch.name for launch in kernel.launches(case)))
    try:
        calls = kernel.phases(case, inputs)
        if not calls.keys() <= set(names):
            raise ValueError(f"phases {', '.join(calls)} are not all among the launches {', '.join(names)}")
    except Exception as error:  # as above: a contestant may raise anything, and the whole call has its time
        return tuple(Phase(name, message=in_words(error)) for name in names)
    return tuple(_time_phase(name, calls[name], bench) for name in names if name in calls)


def _time_phase(name: str, call: Callable[[], object], bench: Bench) -> Phase:
    try:
        call()  # the warm-up
        return Phase(name, _rounded(time_call(call, bench.device.torch, PHASE_POLICY, bench.method.l2).ms))
    except Exception as error:
        return Phase(name, message=in_words(error))


def timed_call(kernel: Kernel, case: Case, inputs: Inputs, forward: Forward) -> Callable[[], object]:
    """What is timed: the case's pass, from tensors on the device to tensors on the device."""
    if case.pass_ == "fwd":

        def call() -> object:
            with torch.no_grad():
                return forward(inputs.q, inputs.k, inputs.v, inputs.log_g)

        return call
    if case.pass_ == "bwd":
        _, gradients = gate.differentiable(kernel, inputs, forward)
        return lambda: gradients(inputs.dy)
    return lambda: gate.differentiable(kernel, inputs, forward)[1](inputs.dy)


def _rounded(ms: Iterable[float]) -> tuple[float, ...]:
    return tuple(max(round(one, NANOSECOND_DIGITS), 10.0**-NANOSECOND_DIGITS) for one in ms)


def _size(inputs: Inputs) -> int:
    return sum(tensor.nbytes for tensor in vars(inputs).values() if tensor is not None)


def _allocated_bytes(device: torch.device) -> int:
    return int(torch.cuda.memory_allocated(device)) if device.type == "cuda" else 0


def _is_lost() -> bool:
    """Whether the device no longer answers this process; where it does, what the failed case held is given back."""
    try:
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
    except RuntimeError:
        return True
    return False
