"""The summary as JSON and Markdown, made anew after every part from the rows that are there."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxemb.files import write_json, write_text

_HEADER = (
    "case", "GFLOP", "GB", "ms", "TFLOP/s", "rate", "share of peak", "share of bandwidth", "compile s", "program GB",
    "peak GB", "peer", "peer ms", "peer GB", "peer / ours",
)  # fmt: skip
_LEGEND = """FLOPs and bytes (the least to be read and written) are by formula; times are medians. `peer / ours` is a
ratio of times, above 1 where we are faster. Program GB is XLA's account of one call, peak GB the most that the part's
process has held on the device so far, peer GB the most that PyTorch has held in the case.
"""


def write(out: Path, outcomes: Sequence[Mapping[str, Any]]) -> None:
    """Writes `results.json` and `summary.md`; `outcomes` are those of `run.run`, rows and all."""
    results = collect(outcomes)
    write_json(out / "results.json", results)
    write_text(out / "summary.md", markdown(results))


def collect(outcomes: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Machine, peaks, and the parts with their shares of the peaks."""
    machines = [row["machine"] for outcome in outcomes for row in outcome["rows"] if "machine" in row]
    parts = {o["name"]: {**o, "rows": [dict(row) for row in o["rows"] if "machine" not in row]} for o in outcomes}
    peaks: dict[str, float] = {}
    for row in parts.get("matmul", {}).get("rows", []):
        work = row["flops"] or row["bytes"]
        rates = [work / row[side]["seconds"] for side in ("ours", "peer") if row[side].get("seconds")]
        peaks[row["precision"]] = max([peaks.get(row["precision"], 0.0), *rates])
    for part in parts.values():
        for row in part["rows"]:
            for side in ("ours", "peer") if "case" in row else ():
                row[side] = {**row[side], **_shares(row, row[side].get("seconds"), peaks)}
    return {"machine": machines[0] if machines else None, "peaks": peaks, "parts": parts}


def _shares(row: Mapping[str, Any], seconds: float | None, peaks: Mapping[str, float]) -> dict[str, float]:
    """Of the measured peak of the row's precision, and of the rate of copying; where both are known."""
    if not seconds:
        return {}
    of = {"share_of_peak": (row["flops"], row["precision"]), "share_of_bandwidth": (row["bytes"], "copy")}
    return {name: work / seconds / peaks[key] for name, (work, key) in of.items() if work and peaks.get(key)}


def markdown(results: Mapping[str, Any]) -> str:
    """The summary; every row of every part is a line of it."""
    text = ["# Accelerator\n", *_machine(results), "## Parts\n"]
    parts = results["parts"].values()
    text.append(_table(("part", "ended", "seconds"), [(p["name"], p["status"], f"{p['seconds']:.0f}") for p in parts]))
    for part in parts:
        text.append(f"## {part['title']}\n")
        checks = [row for row in part["rows"] if "check" in row]
        cases = [row for row in part["rows"] if "case" in row]
        if part["status"] != "done":
            text.append(f"**{part['status']}**\n")
        if checks:
            text.append(_table(("check", "measured", "limit", ""), [_check(row) for row in checks]))
        if cases:
            text.append(_table(_HEADER, [_case(row) for row in cases]))
        text += [f"{row['case']}: {row['note']}\n" for row in cases if "note" in row]
    return "\n".join(text)


def _machine(results: Mapping[str, Any]) -> list[str]:
    about, peaks = results["machine"], results["peaks"]
    if about is None:
        return []
    versions = ", ".join(f"{name} {version or 'absent'}" for name, version in about["packages"].items())
    lines = [f"{about['device']} ({about['nvidia_smi'] or about['backend']}); {about['platform_version']}; "
             f"{about['cores']} cores; python {about['python']}, {versions}.\n"]  # fmt: skip
    rate = lambda key, value: f"{key} {value / 1e12:,.2f} {'TB/s' if key == 'copy' else 'TFLOP/s'}"
    if peaks:
        lines.append("Measured peaks: " + ", ".join(rate(key, value) for key, value in peaks.items()) + ".\n")
    if about["packages"]["torch"] is None:
        lines.append("PyTorch is absent: there is no peer, and ratios are null.\n")
    lines.append(_LEGEND)
    return lines


def _check(row: Mapping[str, Any]) -> tuple[str, ...]:
    number = lambda value: "" if value is None else f"{value:.1e}"
    verdict = row.get("skipped") or row.get("error") or ("passed" if row["passed"] else "**failed**")
    if row["limit"] is None and row["measured"] is not None:
        verdict = "shown only"
    return row["check"], number(row["measured"]), number(row["limit"]), verdict


def _case(row: Mapping[str, Any]) -> tuple[str, ...]:
    ours, peer = row["ours"], row["peer"]
    seconds, absent = ours.get("seconds"), f"absent: {peer['absent']}" if "absent" in peer else ""
    number = lambda value, factor=1.0, spec=",.2f": "" if value is None else f"{value * factor:{spec}}"
    share = lambda key: number(ours.get(key), 1.0, ".0%")
    rate = f"{_short(row['work'][0] / seconds)} {row['work'][1]}/s" if seconds and row["work"] else ""
    return (
        row["case"],
        number(row["flops"], 1e-9, ",.1f"),
        number(row["bytes"], 1e-9, ",.3f"),
        number(seconds, 1e3) or row.get("skipped") or ours.get("error", ""),
        number(row["flops"] / seconds, 1e-12, ",.1f") if seconds else "",
        rate,
        share("share_of_peak"),
        share("share_of_bandwidth"),
        number(ours.get("compile_seconds"), spec=".1f"),
        number(ours.get("program_bytes"), 1e-9),
        number(ours.get("process_peak_bytes"), 1e-9),
        peer.get("name", ""),
        number(peer.get("seconds"), 1e3) or peer.get("error") or absent,
        number(peer.get("peak_bytes"), 1e-9),
        number(row["ratio"]),
    )


def _short(value: float) -> str:
    """Three digits: 12.3 k, 4.56 M."""
    power = min(max(int(math.log10(max(value, 1)) // 3), 0), 3)
    return f"{value / 1000**power:.3g} {('', 'k', 'M', 'G')[power]}".rstrip()


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    line = lambda cells: "| " + " | ".join(str(cell).replace("|", "/").replace("\n", " ") for cell in cells) + " |"
    return "\n".join([line(header), line(["---"] * len(header)), *map(line, rows)]) + "\n"
