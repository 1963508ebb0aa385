"""Cross-style retrieval of emoji by raw pixels, a random and a trained backbone, and EfficientNet-Lite0.

    mcbeit data prepare emoji-styles data/emoji-styles
    python benchmarks/retrieval.py runs/emoji

See mcbeit/bench/emoji_styles.py for the protocol, docs/walkthrough.md for a run of it.
"""

import argparse
from pathlib import Path

from mcbeit.bench.emoji_styles import PAIRS, read_styles, rows
from mcbeit.cli.tables import print_table
from mcbeit.progress import Display


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--data", type=Path, default=Path("data/emoji-styles"))
    options = parser.parse_args()
    styles = read_styles(options.data)
    table = []
    with Display("retrieval", 0) as display:
        for name, scores in rows(options.run, styles):
            display.note(f"{name}: R@1 {scores[0].recall[0]:.3f} of {PAIRS[0][1]} by {PAIRS[0][0]}")
            table.append([name, *(" ".join(f"{x:.3f}" for x in (*s.recall, s.mean_reciprocal_rank)) for s in scores)])
    print_table(["R@1 R@5 R@10 MRR", *(f"{query} -> {gallery}" for query, gallery in PAIRS)], table)
    query, gallery = styles[PAIRS[0][0]], styles[PAIRS[0][1]]
    print(f"{int(query.is_held_out.sum())} held-out queries, {len(gallery.paths)} in the gallery; drawings on white")


if __name__ == "__main__":
    main()
