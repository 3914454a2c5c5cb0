"""RoBERTa, XLM-RoBERTa and CamemBERT: BERT's tensors, with positions that start after the padding id.

Liu et al. 2019 (arXiv:1907.11692). Positions count from `pad_token_id + 1`, so that a table of 514 rows serves
512 tokens.
"""

import dataclasses

from jaxemb.encoders.families.bert import BERT_TABLE, bert_config
from jaxemb.encoders.families.family import Family, HfConfig
from jaxemb.encoders.transformer import TransformerConfig


def roberta_config(c: HfConfig) -> TransformerConfig:
    """The transformer that a RoBERTa `config.json` describes."""
    config = bert_config(c)
    offset = c.get("pad_token_id", 1) + 1
    return dataclasses.replace(config, position_offset=offset, max_positions=config.position_table - offset)


FAMILY = Family(
    model_types=("roberta", "xlm-roberta", "camembert"),
    config=roberta_config,
    tables=(BERT_TABLE,),
    prefixes=("roberta.",),
    ignored=(
        r"embeddings\.(position_ids|token_type_ids)",
        r"pooler\..*",
        r"lm_head\..*",
        r"classifier\..*",
        r"qa_outputs\..*",
    ),
)
