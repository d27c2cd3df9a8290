"""Words of Lightning, transformers and PyTorch for the settings of a run, and what they are called here."""

from collections.abc import Mapping

# Word of another library -> the setting here that means the same; a setting of a part by its last word.
ALIASES: Mapping[str, str] = {
    word: setting
    for setting, words in {
        "train.steps": "max_steps num_steps n_steps total_steps training_steps num_training_steps iterations max_iters "
        "num_iterations train_steps",
        "train.tokens": "max_tokens total_tokens num_tokens n_tokens train_tokens token_budget",
        "train.epochs": "max_epochs num_epochs n_epochs num_train_epochs",
        "train.batch_tokens": "tokens_per_batch tokens_per_step total_batch_size_tokens",
        "train.batch_size": "per_device_train_batch_size train_batch_size micro_batch_size device_batch_size bsz bs",
        "train.accumulate": "accumulate_grad_batches gradient_accumulation_steps grad_accum grad_accumulation "
        "grad_accum_steps gradient_accumulation accumulation_steps",
        "train.label_smoothing": "label_smoothing_factor",
        "train.log_every": "log_every_n_steps logging_steps log_interval log_steps",
        "train.val_every": "val_check_interval eval_steps eval_interval eval_every eval_every_n_steps validate_every",
        "train.checkpoint_every": "save_steps save_every save_interval every_n_train_steps checkpoint_interval",
        "train.keep": "save_total_limit save_top_k",
        "optimizer.lr": "learning_rate max_lr base_lr peak_lr rate",
        "optimizer.weight_decay": "wd weightdecay",
        "optimizer.eps": "adam_epsilon adam_eps epsilon",
        "optimizer.betas": "adam_betas",
        "optimizer": "optim optimizer_name optimizer_type",
        "schedule": "lr_scheduler_type lr_scheduler lr_schedule scheduler scheduler_type",
        "schedule.warmup": "warmup_ratio warmup_fraction",
        "schedule.final": "min_lr_ratio min_lr_rate final_lr_fraction",
        "position.base": "rope_theta theta rotary_base rope_base",
        "peft.rank": "r lora_r lora_rank",
        "peft.alpha": "lora_alpha",
        "peft.dropout": "lora_dropout",
        "peft.targets": "target_modules lora_target_modules",
        "trainer.device": "accelerator",
        "trainer.workers": "num_workers dataloader_num_workers n_workers",
        "trainer.threads": "num_threads n_threads",
        "trainer.compile": "torch_compile use_compile",
        "trainer.progress": "enable_progress_bar progress_bar",
        "trainer.precision": "dtype mixed_precision amp",
        "model.d_model": "hidden_size n_embd embed_dim d_embed model_dim hidden_dim width dim",
        "model.n_layers": "num_hidden_layers n_layer num_layers num_blocks depth",
        "model.n_heads": "num_attention_heads n_head num_heads",
        "model.d_head": "head_dim head_size",
        "model.d_ff": "intermediate_size n_inner ffn_dim dim_feedforward",
        "model.max_len": "max_position_embeddings block_size seq_len seq_length sequence_length max_seq_len "
        "max_seq_length context_length context_size n_positions n_ctx",
        "model.dropout": "dropout dropout_rate resid_pdrop hidden_dropout_prob",
        "model.tied": "tie_word_embeddings tie_weights",
        "model.path": "model_name_or_path model_path pretrained_model_name_or_path",
        "attention.n_kv_heads": "num_key_value_heads num_kv_heads",
        "seeds.data": "data_seed data_order_seed",
        "seeds.init": "init_seed",
        "seed": "random_seed manual_seed seed_everything rng_seed",
        "max_norm": "max_grad_norm gradient_clip_val grad_clip clip_grad_norm clip_grad gradient_clipping",
        "out": "output_dir default_root_dir save_dir run_dir",
        "name": "run_name experiment_name",
        "resume": "resume_from_checkpoint ckpt_path",
        "activation": "hidden_act activation_function act_fn",
        "norm": "norm_type normalization",
        "position": "pos_emb position_embedding_type positional_encoding",
        "source": "dataset dataset_name",
        "design.runs": "n_trials num_trials max_trials total_trials max_evals n_calls run_cap",
    }.items()
    for word in words.split()
}
# Words for the number of arms that a design draws, under `design.` alone: elsewhere they count something else.
RUNS = (*(w for w, s in ALIASES.items() if s == "design.runs"), "trials", "runs", "samples", "n_samples", "num_samples",
        "n_iter", "n_runs", "num_runs", "max_runs", "count", "n", "points", "budget")  # fmt: skip
# The values of other libraries that mean the same as one here.
VALUES: Mapping[str, Mapping[str, str]] = {
    "trainer.precision": {
        "16-mixed": "16", "bf16-mixed": "bf16", "32-true": "32", "fp16": "16", "float16": "16", "bfloat16": "bf16",
        "fp32": "32", "float32": "32",
    },
    "trainer.device": {"gpu": "cuda"},
}  # fmt: skip
HOOKS = (
    "a run takes no callbacks by name; a stabilizer acts in every step and may end a run, a logger receives every "
    "metric (`ablatio list stabilizer`, `ablatio list logger`), and `ablatio.train(callbacks=[...])` takes objects"
)
# Words of which no setting means the same, and what does the work here.
NOTES: Mapping[str, str] = {
    **dict.fromkeys(("callbacks", "callback", "hooks"), HOOKS),
    **dict.fromkeys(
        ("early_stopping", "patience", "early_stopping_patience"),
        f"early stopping is the work of a stabilizer; {HOOKS}",
    ),
    **dict.fromkeys(
        ("global_batch_size", "effective_batch_size", "total_batch_size"),
        "a step takes train.batch_size * train.accumulate rows; train.batch_tokens says it in tokens",
    ),
    "warmup_steps": "the warm-up is a share of all steps: schedule.warmup=0.05",
    **dict.fromkeys(
        ("min_lr", "final_lr", "eta_min"), "the last learning rate is a share of optimizer.lr: schedule.final=0.1"
    ),
    **dict.fromkeys(
        ("gradient_checkpointing", "activation_checkpointing", "use_checkpoint"),
        "it is a part, chosen by name: `ablatio list checkpointing`",
    ),
    "devices": "one run on several devices: trainer.devices=2 with a `strategy`; several runs at a time: a `launcher`",
    **dict.fromkeys(
        ("minutes", "hours", "seconds", "max_time", "wall_time", "time_limit"),
        "a time does not say how many steps a run has, which its schedule and its repetition need: `ablatio train "
        "train.minutes=10` tries a run and sets train.steps to what fits here; match=time gives the arms of a sweep "
        "equal times; timeout= ends its runs; `ablatio size --flops RATE` prints the time of a budget",
    ),
    **dict.fromkeys(("freeze_layers", "frozen"), "weights are frozen by role or place: freeze=[embed,layers.0-3]"),
}
