"""Explain: why a layout was chosen, in sentences made of its numbers and its rivals'."""

from dataclasses import asdict

from alpage.cost import Terms
from alpage.planners.layouts import Candidate, Choice, priced, ways, why_whole
from alpage.units import format_bytes, format_seconds


def explain(choice: Choice) -> tuple[str, ...]:
    """Return sentences, each of which holds by the numbers of the candidates."""
    if choice.best.mesh.num_ranks == 1:
        return _largest(choice.best), "There is one device, so nothing is cut"
    sentences = (
        _largest(choice.best),
        _weights(choice),
        _attention(choice),
        _mesh(choice),
        _runner_up(choice),
        _alone(choice),
        _too_large(choice),
    )
    return tuple(sentence for sentence in sentences if sentence)


def _largest(best: Candidate) -> str:
    name, seconds = max(asdict(best.terms).items(), key=lambda term: term[1])
    share = seconds / best.step_s
    text = f"The largest term is {_term(name)}: {format_seconds(seconds)}, {share:.0%} of the step"
    if name == "latency_s":
        text += ", which collectives wait for whatever the batch"
    return text


def _weights(choice: Choice) -> str:
    best = choice.best
    if why := why_whole(best):
        return f"Every device keeps the whole model and computes all of it: {why}"
    gathers = _gathers(best)
    rival = next((one for one in choice.alike if _gathers(one) != gathers), None)
    num_tokens = best.step.num_tokens
    tokens = "1 token" if num_tokens == 1 else f"{num_tokens:,} tokens"
    if gathers:
        head = f"Weights are gathered for every block: {tokens} keep the products busy for "
        head += f"{format_seconds(best.terms.products_s)}, "
        left_s = best.terms.gather_s
        head += f"which hides all but {format_seconds(left_s)}" if left_s else "which hides it"
        if rival is None:
            return f"{head}; no layout fits that leaves them where they are"
        moved = _compared(rival.terms.transfer_s - best.terms.transfer_s)
        head += f"; left where they are, activations would move for {moved}"
        return f"{head} ({_label(rival)})"
    head = f"Weights stay where they are, and the activations of {tokens} move for "
    head += format_seconds(best.terms.transfer_s)
    if rival is None:
        return f"{head}; no layout that gathers weights fits and can cut this batch"
    gathered = format_seconds(rival.terms.gather_s)
    return f"{head}; gathering weights would take {gathered} beyond the products ({_label(rival)})"


def _attention(choice: Choice) -> str:
    best = choice.best
    kv_bytes = format_bytes(best.memory.kv_bytes)
    if best.layout.name == "replicated":
        return ""
    if best.mesh.size(best.layout.tokens) > 1:
        return (
            f"Attention is over the batch, which the layout cuts for all products: {kv_bytes} of "
            "keys and values a device"
        )
    head = f"Attention is over {_over(best)}: {kv_bytes} of keys and values a device"
    twins = (
        priced(best.shape, attention, best.mesh, best.step, best.precision)
        for attention in ways(best.mesh, best.step)
        if attention.layout == best.layout
    )
    twin = next((one for one in twins if one.attention_sharding != best.attention_sharding), None)
    if twin is None:
        num_sequences = best.step.num_sequences
        few = "1 sequence is" if num_sequences == 1 else f"{num_sequences:,} sequences are"
        return f"{head}; {few} too few to cut"
    other = f"{head}; over {_over(twin)} it would be {format_bytes(twin.memory.kv_bytes)}"
    if not twin.has_room:
        return f"{other}, which does not fit"
    return f"{other}, and the step {_compared(twin.step_s - best.step_s)}"


def _mesh(choice: Choice) -> str:
    best = choice.best
    if best.layout.name == "ws_2d" and best.mesh.size(best.layout.embed) == 1:
        return "With x=1, ws_2d is the 1D layout: features are cut over all devices, embed is whole"
    others = [
        one
        for one in choice.alike
        if one.layout == best.layout
        and one.attention_sharding == best.attention_sharding
        and one.step_s > (1 + _TOLD_APART) * best.step_s
    ]
    if not others:
        return ""
    least, most = others[0], others[-1]
    text = f"Another mesh, {least.mesh}, would take {format_seconds(least.step_s)}"
    if most.step_s <= (1 + _TOLD_APART) * least.step_s:
        return text
    return f"{text}, and {most.mesh} {format_seconds(most.step_s)}"


def _runner_up(choice: Choice) -> str:
    best, other = choice.best, choice.runner_up
    if other is None:
        return "No other layout fits"
    name = f"{_label(other)}, attention over {_over(other)}"
    if other.step != best.step:
        name += f", {other.step.num_sequences:,} sequences"
    if other.precision != best.precision:
        name += f", {other.precision.weights} weights"
    difference_s = other.step_s - best.step_s
    if abs(difference_s) < _TOLD_APART * best.step_s:
        return f"{name} would take as long, within a hundredth"
    changes = _differences(best.terms, other.terms)
    term = max(changes, key=lambda name: changes[name] * difference_s)
    return f"{name} would take {_compared(difference_s)}: {_term(term)} {_signed(changes[term])}"


def _alone(choice: Choice) -> str:
    """Return what one mesh for both phases costs this one."""
    best, fastest = choice.best, choice.candidates[0]
    if fastest.step != best.step or fastest.step_s * (1 + _TOLD_APART) >= best.step_s:
        return ""
    return (
        f"Alone it would take {format_seconds(fastest.step_s)}, with {_label(fastest)}; "
        "both phases share a mesh and store weights alike"
    )


def _too_large(choice: Choice) -> str:
    number = choice.num_too_large
    if not number:
        return ""
    return f"{number:,} other {'way does' if number == 1 else 'ways do'} not fit into the memory"


# As `choose_layout` does: prices closer than a hundredth are one.
_TOLD_APART = 0.01


def _gathers(candidate: Candidate) -> bool:
    layout = candidate.layout
    return candidate.mesh.size(layout.gathered_embed + layout.gathered_ffw) > 1


def _label(candidate: Candidate) -> str:
    """Return a candidate's layout and mesh, as in "ws_2d on x=4, y=1, z=16"."""
    return f"{candidate.layout.name} on {candidate.mesh}"


def _over(candidate: Candidate) -> str:
    return "heads" if candidate.attention_sharding == "heads" else "the batch"


def _differences(one: Terms, other: Terms) -> dict[str, float]:
    before = asdict(one)
    return {name: seconds - before[name] for name, seconds in asdict(other).items()}


def _compared(seconds: float) -> str:
    return f"{format_seconds(abs(seconds))} {'more' if seconds >= 0 else 'less'}"


def _term(name: str) -> str:
    return name.removesuffix("_s")


def _signed(seconds: float) -> str:
    return f"{'+' if seconds >= 0 else '-'}{format_seconds(abs(seconds))}"
