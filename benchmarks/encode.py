"""Encoding speed against sentence-transformers: same model, texts, precision (f32) and threads, on CPU.

Short texts are the distinct sentences of STS-B English dev, long ones those joined twelve at a time.
"""

import os

from benchmarks import harness
from benchmarks.workloads import minilm_directory, stsb_file, stsb_sentences

CASES = ("short", "long")


def texts_of(case: str) -> list[str]:
    """The texts of a case."""
    sentences = stsb_sentences("dev")
    return (
        sentences if case == "short" else [" ".join(sentences[i : i + 12]) for i in range(0, len(sentences) - 11, 12)]
    )


def worker(name: str, case: str, threads: int, model: str) -> None:
    """Loads one library's model and serves."""
    texts = texts_of(case)
    if name == "jaxemb":
        import jaxemb

        embedder = jaxemb.load(model)
        lengths = [len(ids) for ids in embedder.tokenizer(texts, embedder.max_length)]
        harness.serve(lambda: embedder.encode(texts) is None or {}, {"texts": len(texts), "lengths": lengths})
    else:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
        import torch
        from sentence_transformers import SentenceTransformer

        torch.set_num_threads(threads)
        peer = SentenceTransformer(model, device="cpu")
        harness.serve(lambda: peer.encode(texts) is None or {}, {"texts": len(texts)})


def main() -> None:
    """Runs the cases and writes the ratios."""
    args = harness.arguments(__doc__, CASES, packages=harness.PEER, files=[stsb_file("dev")])
    model = args.model or minilm_directory()
    if args.worker:
        return worker(args.worker, args.case, args.threads, model)
    peak = harness.matmul_peak(args.threads)
    result = {"threads": args.threads, "matmul_peak_flops": peak, "cases": {}}
    for case in [args.case] if args.case else CASES:
        outcome = harness.compare("benchmarks.encode", case, args.threads, args.rounds)
        flops = harness.encoder_flops(outcome["jaxemb"].pop("lengths"), layers=6, dim=384, mlp_dim=1536)
        result["cases"][case] = harness.with_rates(outcome, flops, peak, "texts")
        harness.show(case, outcome, "texts")
    harness.save("encode", result)


if __name__ == "__main__":
    main()
