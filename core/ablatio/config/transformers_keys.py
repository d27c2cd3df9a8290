"""Keys of transformers' config.json: which are read, which do not change the logits, and which are refused."""

from collections.abc import Iterator, Mapping
from typing import Any

from ablatio.errors import UserError

# Keys without an effect on the logits.
OF_THE_FILE = """_name_or_path architectures dtype finetuning_task is_llama_config model_type tokenizer_class
    torch_dtype transformers.js_config transformers_version use_bfloat16"""
# A run has its own: model.dropout and init.
OF_TRAINING = """activation_dropout attention_dropout attn_pdrop bias_dropout_fusion classifier_dropout dropout
    dropout_rate embd_pdrop gradient_checkpointing hidden_dropout init_std initializer_factor initializer_range
    layerdrop masked_softmax_fusion resid_pdrop"""
OF_OUTPUTS = """chunk_size_feed_forward id2label is_decoder is_encoder_decoder label2id n_special output_attentions
    output_hidden_states output_past output_scores predict_special_tokens prefix problem_type return_dict
    return_dict_in_generate summary_activation summary_first_dropout summary_last_dropout summary_proj_to_labels
    summary_type summary_use_proj task_specific_params tf_legacy_loss torchscript use_cache"""
# The ids of bos and eos are the tokenizer's.
OF_GENERATION = """bad_words_ids begin_suppress_tokens bos_token_id decoder_start_token_id diversity_penalty do_sample
    early_stopping encoder_no_repeat_ngram_size eos_token_id exponential_decay_length_penalty forced_bos_token_id
    forced_eos_token_id length_penalty max_length min_length no_repeat_ngram_size num_beam_groups num_beams
    num_return_sequences pad_token_id remove_invalid_values repetition_penalty sep_token_id suppress_tokens temperature
    top_k top_p typical_p unk_token_id"""
# The same products in another order or precision.
OF_ROUNDING = """attention_softmax_in_fp32 offset_alibi pretraining_tp reorder_and_upcast_attn skip_bias_add
    skip_bias_add_qkv slow_but_exact"""
# They follow from settings that are read: n_ctx is n_positions, dense_act_fn is in feed_forward_proj.
DUPLICATES = "dense_act_fn is_gated_act max_window_layers n_ctx"
HARMLESS = frozenset(" ".join((OF_THE_FILE, OF_TRAINING, OF_OUTPUTS, OF_GENERATION, OF_ROUNDING, DUPLICATES)).split())
# Keys with a value that ablatio computes; any other value is refused. None and an absent key mean the same.
ONE_VALUE: Mapping[str, Any] = {
    "add_cross_attention": False,
    "apply_residual_connection_post_layernorm": False,
    "cross_attention_hidden_size": None,
    "layer_norm_elementwise_affine": True,
    "pruned_heads": {},
    "rope_interleaved": False,
    "scale_attn_by_inverse_layer_idx": False,
    "tie_encoder_decoder": False,
    "use_sliding_window": False,
}


class ReadSettings(Mapping[str, Any]):
    """Settings of a config.json that remembers which of its keys were read."""

    def __init__(self, settings: Mapping[str, Any], read: set[str] | None = None) -> None:
        self.settings, self.read = settings, set[str]() if read is None else read

    def with_values(self, **values: Any) -> "ReadSettings":
        """The settings with other values; what is read of these counts as read here, too."""
        return ReadSettings({**self.settings, **values}, self.read)

    def __getitem__(self, key: str) -> Any:
        self.read.add(key)
        return self.settings[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.settings)

    def __len__(self) -> int:
        return len(self.settings)


def refuse_unread(settings: ReadSettings, where: str) -> None:
    """Raise UserError for a setting that would change the model and was not read."""
    kind = settings.settings.get("model_type")
    for key, value in settings.settings.items():
        if key in settings.read or key in HARMLESS or value is None:
            continue
        if key not in ONE_VALUE:
            raise UserError(
                f"{where}: the setting `{key}` = {value!r} is not known to ablatio, which would ignore it\n"
                f"    try: delete `{key}` from config.json if {kind} models do not use it"
            )
        if value != ONE_VALUE[key]:
            raise UserError(
                f"{where}: `{key}` = {value!r} is not supported: models with it compute something that no combination "
                f"of parts does; expected {ONE_VALUE[key]!r}\n    try: a model without it, as ablatio fetch smollm2"
            )
