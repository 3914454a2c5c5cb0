"""RoBERTa, XLM-RoBERTa and CamemBERT: BERT's tensors, with positions that start after the padding id.

Liu et al. 2019 (arXiv:1907.11692). Positions count from `pad_token_id + 1`, so that a table of 514 rows serves
512 tokens.
"""

import dataclasses

from jaxemb.encoders.families.bert import BERT_TABLE, bert_config
from jaxemb.encoders.families.family import TASK_HEADS, Family, HfConfig, masked_language_head, pooler
from jaxemb.encoders.transformer import TransformerConfig
from jaxemb.settings import size


def roberta_config(c: HfConfig) -> TransformerConfig:
    """The transformer that a RoBERTa `config.json` describes."""
    offset = size(c, "pad_token_id", 1, least=0) + 1
    size(c, "max_position_embeddings", 512, least=offset + 1)
    config = bert_config(c)
    return dataclasses.replace(config, position_offset=offset, max_positions=config.position_table - offset)


LM_HEAD = masked_language_head("lm_head.dense", "lm_head.layer_norm", "lm_head.bias", r"lm_head\..*", "gelu")

FAMILY = Family(
    model_types={"roberta": "RobertaModel", "xlm-roberta": "XLMRobertaModel", "camembert": "CamembertModel"},
    config=roberta_config,
    tables=(BERT_TABLE,),
    prefixes=("roberta.",),
    heads={"masked_language": LM_HEAD, "pooler": pooler(), **TASK_HEADS},
    buffers=(r"embeddings\.(position_ids|token_type_ids)",),
)
