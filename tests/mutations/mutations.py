"""Changes of what routing, layers, schedule and trainers mean, each with the test that must notice.

They are one-line mistakes that a person could make and that leave training running: a mask that is forgotten, a process
group that is another, a rule that is not asked.
"""

from tests.mutations.copies import Mutation

VALID = "routing/test_losses.py::test_padding_counts_in_no_loss"
METRICS = "moe/test_competing_metrics.py::test_sums_are_those_of_the_valid_tokens[world1-tp1-cp1-ep1-etp1-alltoall]"
RULE = "routing/test_rule.py"
EMA = "moe/test_centering.py::test_running_statistics_are_over_all_replicas[world2-tp1-cp1-ep1-etp1-alltoall]"
LAYER = "moe/test_layouts.py::test_layer_equals_dense_reference[world1-tp1-cp1-ep1-etp1-alltoall]"
PADDED = "moe/test_uneven.py::test_losses_ignore_padding[world2-tp2-cp1-ep1-etp1-alltoall]"
ROWS = "moe/test_row_dispatcher.py"
GRAPHS = "moe/test_graphs.py::test_training_is_the_same_with_graphs[router]"
SETTINGS = "moe/test_router_settings.py"
ROUTER_LOSSES = "moe/test_router_losses.py"
LOSS_TOKENS = "moe/test_loss_tokens.py::test_losses_are_weighed_by_what_the_loss_counts"
SAMPLED = "moe/test_layouts.py::test_layer_equals_dense_reference[world2-tp2-cp1-ep2-etp1-alltoall]"
SAMPLED_IDS = "moe/test_sample.py::test_the_same_tokens_compete_in_every_layout[world2-tp1-cp2-ep1-etp2-alltoall]"
LATENT = "moe/test_latent.py::test_layer_equals_dense_reference[world1-tp1-cp1-ep1-etp1-alltoall]"
DIGESTS = "schedule/test_table.py::test_digests_tell_another_way_of_drawing"
EVERY_SETTING = "schedule/test_table.py::test_every_setting_of_a_job_reaches_the_schedule"
SAVED_SCHEDULE = "trainers/test_same_schedule.py::test_a_saved_schedule_is_followed_refused_or_overridden"
TEXT_ALONE = "vlm/test_model.py::test_a_microbatch_of_text_leaves_tower_and_projector_alone"

ROUTING = (
    Mutation("routing/losses.py", "return token_mean(pairs_T, valid_T)", "return token_mean(pairs_T)", VALID),
    Mutation("routing/losses.py", "token_mean(at_least_fp32(probs_TE), valid_T)", "token_mean(at_least_fp32(probs_TE))", VALID),
    Mutation("routing/losses.py", "(num_winners * (num_winners - 1))", "num_winners**2", "routing/test_losses.py::test_diversity_is_the_mean_cosine_of_ordered_pairs"),
    Mutation("routing/losses.py", "_kl(target_TE, probs_TE) +", "_kl(probs_TE, target_TE) +", "routing/test_losses.py::test_kl_distillation_is_the_divergence_and_that_over_the_winners"),
    Mutation("routing/losses.py", "F.normalize(at_least_fp32(outputs_TKH), dim=-1)", "F.normalize(outputs_TKH, dim=-1)", "routing/test_losses.py::test_losses_of_bf16_are_reduced_in_fp32"),
    Mutation("routing/sample.py", "fraction * block_length + rounding", "fraction * block_length + 0.5", "routing/test_sample.py::test_the_mean_of_a_thousand_steps_is_the_fraction"),
    Mutation("routing/sample.py", "_uniform(1 + blocks, seed, step, layer_number)", "_uniform(1 + blocks, seed, step, 0)", "routing/test_sample.py::test_a_sample_depends_on_seed_step_and_layer"),
    Mutation("routing/centering.py", "counts * (means - mean_E).square()", "(means - mean_E).square()", "routing/test_centering.py::test_statistics_of_parts_are_those_of_the_whole"),
    Mutation("routing/rule.py", "(scores_TE * routing_map_TE).sum", "scores_TE.sum", f"{RULE}::test_choice_and_weights_are_upstreams"),
    Mutation("routing/rule.py", "ranked_TE.float() + bias_E.float()", "ranked_TE.float() - bias_E.float()", f"{RULE}::test_choice_and_weights_are_upstreams"),
    Mutation("routing/rule.py", "else self.top_k > 1", "else True", f"{RULE}::test_choice_and_weights_are_upstreams"),
    Mutation("routing/utility.py", "if not rule.shares:", "if rule.top_k == 1:", "routing/test_utility.py::test_the_dense_gradient_is_that_of_the_sum_of_all_experts"),
    Mutation("routing/rule.py", ".values.sum(dim=-1)", ".values.amax(dim=-1)", f"{RULE}::test_the_best_are_those_that_upstream_chooses"),
    Mutation("routing/winners.py", "scores_TE.gather(1, winners_TK).argmax(dim=-1, keepdim=True)", "scores_TE.gather(1, winners_TK).argmin(dim=-1, keepdim=True)", "routing/test_winners.py::test_favourites_are_compared_among_those_that_may_be_chosen"),
)  # fmt: skip

LAYERS = (
    Mutation("moe/losses.py", "token_mean(agreement_T, valid_T)", "token_mean(agreement_T)", METRICS),
    Mutation("moe/losses.py", "rows_TKH.shape[0] if valid_T is None else valid_T.sum(),", "rows_TKH.shape[0],", METRICS),
    Mutation("moe/losses.py", "distillation_target(outcome.scores_TE,", "distillation_target(outcome.responses_TE,", LAYER),
    Mutation("moe/losses.py", "diversity=diversity,", "diversity=loss,", METRICS),
    Mutation("moe/losses.py", "outcome.num_sequences, valid_T, share", "outcome.num_sequences, None, share", PADDED),
    Mutation("moe/losses.py", "auxiliary.share(sample.among(outcome.valid))", "auxiliary.share(outcome.valid)", SAMPLED),
    Mutation("moe/losses.py", "valid_T, share, first_T)", "valid_T, share)", LAYER),
    Mutation("moe/balance.py", "None if valid_T is None else valid_T.view(positions, num_sequences),", "None,", PADDED),
    Mutation("moe/balance.py", "            self.auxiliary.sum_over_ranks,", "            None,", SAMPLED),
    Mutation("moe/router.py", "z_coeff * share * router_z_loss", "z_coeff * router_z_loss", SAMPLED),
    Mutation("moe/loss_tokens.py", "self._first.popleft() if self._first else count.clone()", "count.clone()", f"{LOSS_TOKENS}[world1-tp1-cp1-ep1-etp1-alltoall-recomputed]"),
    Mutation("moe/loss_tokens.py", "count / self.tp_cp_group.size()", "count", f"{LOSS_TOKENS}[world2-tp2-cp1-ep1-etp1-alltoall-]"),
    Mutation("moe/auxiliary.py", "        if counted is not None:", "        if False:", f"{LOSS_TOKENS}[world1-tp1-cp1-ep1-etp1-alltoall-]"),
    Mutation("moe/router.py", "competing.beside(valid_T)", "competing.among(valid_T)", SAMPLED),
    Mutation("moe/utility.py", "sample.put(grad_probs_TE, torch.zeros_like(sample.take(grad_probs_TE)))", "grad_probs_TE", LAYER),
    Mutation("moe/utility.py", "sample.put(grad_probs_TE, torch.zeros_like(sample.take(grad_probs_TE)))", "torch.zeros_like(grad_probs_TE)", LAYER),
    Mutation("moe/sample.py", "place[chunk == 2 * parts - 1 - part]", "place[chunk == part + parts]", SAMPLED_IDS),
    Mutation("moe/row_dispatcher.py", "rows.new_zeros(num_tokens, rows.shape[-1]).index_add(0, token_of_row, rows)", "rows.new_zeros(num_tokens, rows.shape[-1]).index_copy(0, token_of_row, rows)", LAYER),
    Mutation("moe/utility.py", "token_mean(top1_T, valid_T)", "token_mean(top1_T)", METRICS),
    Mutation("moe/utility.py", "choose_winners(-utilities_TE,", "choose_winners(utilities_TE,", METRICS),
    Mutation("moe/utility.py", "grad_TE.masked_fill(choice_TE, 0.0)", "grad_TE", LAYER),
    Mutation("moe/centering.py", "self.group = groups.tp_dp_cp", "self.group = groups.tp_cp", EMA),
    Mutation("moe/centering.py", "buffer.data = buffer.data.float()", "pass", EMA),
    Mutation("moe/auxiliary.py", "return count / self.sum_over_ranks(count).clamp_min(1.0)", "return 1 / self.group.size()", PADDED),
    Mutation("moe/layer.py", "self.router.weight_sum(outcome.logits, outcome.choice_TE)", "self.router.rule.scaling_factor", f"{SETTINGS}::test_output_keeps_its_scale_and_tokens_their_groups[pre-softmax, scaled]"),
    Mutation("moe/layer.py", "choose_winners(ranked_TE, self.router.rule)", "ranked_TE.topk(self.router.rule.top_k).indices.sort().values", f"{SETTINGS}::test_output_keeps_its_scale_and_tokens_their_groups[groups]"),
    Mutation("moe/layer.py", "AlsoReaching.apply(kept[0], probs_TE)", "kept[0]", f"{ROUTER_LOSSES}::test_whatever_else_a_router_does[recomputed]"),
    Mutation("moe/layer.py", "if self.router.forces_load else scores_TE", "if False else scores_TE", f"{ROUTER_LOSSES}::test_forced_load_balancing_forces_winners_too"),
    Mutation("moe/router.py", "is None else self.would_choose(logits)", "is None else routing_map_TE", f"{SETTINGS}::test_layer_equals_dense_reference[capacity, sigmoid, padded-world1-tp1-cp1-ep1-etp1-alltoall]"),
    Mutation("moe/direct.py", "        await_parameters(self.experts)\n", "", "moe/test_direct.py::test_it_waits_for_weights"),
    Mutation("moe/direct.py", "and type(mlp.linear_fc2) in (RowParallelLinear, OwnedRowLinear)", "", "moe/test_direct.py::test_whatever_is_not_known_runs_by_the_modules"),
    Mutation("moe/latent.py", "return gradients_TH @ self.up.weight", "return self.down(gradients_TH)[0]", LATENT),
    Mutation("moe/latent.py", "response(self.contributions(outputs))", "response(outputs)", LATENT),
    Mutation("moe/layer.py", "self._first_pass.popleft()", "self._first_pass.pop()", "moe/test_recompute.py::test_microbatches_in_flight_keep_their_winners"),
    Mutation("moe/layer.py", "or InferenceMode.is_active() or", "or", "moe/test_dispatchers.py::test_inference_keeps_its_own_dispatcher"),
    Mutation("moe/layer.py", ".chosen(kept[0], routing_map_TE).clone()", ".chosen(kept[0], routing_map_TE)", f"{ROWS}::test_competing_experts_pad_for_themselves[world1-tp1-cp1-ep1-etp1-alltoall]"),
    Mutation("moe/row_dispatcher.py", "experts.config = config", "pass", f"{ROWS}::test_competing_experts_pad_for_themselves[world1-tp1-cp1-ep1-etp1-alltoall]"),
    Mutation("moe/row_dispatcher.py", "global_input_tokens = global_input_tokens.clone()", "pass", f"{ROWS}::test_the_overlapped_schedule_of_deepep_frees_nothing_that_rows_need"),
    Mutation("moe/graphs.py", "if graphs and self.mlp.competes() else graphs", "if False else graphs", GRAPHS),
    Mutation("moe/layer.py", "or self.is_mtp_layer or is_capturing()", "or self.is_mtp_layer", GRAPHS),
    Mutation("moe/router.py", "not is_capturing() and metrics_due()", "metrics_due()", GRAPHS),
    Mutation("moe/crossing.py", "*grad_outputs, *grads", "*grad_outputs, *(None for _ in grads)", LAYER),
    Mutation("moe/router.py", "return self.training and not self.is_mtp_layer and", "return self.training and", "moe/test_competing_metrics.py::test_mtp_layers_leave_the_decoders_metrics_alone"),
    Mutation("moe/router.py", "z_coeff) > 0.0 and self.training and", "z_coeff) > 0.0 and", "moe/test_competing_metrics.py::test_evaluation_carries_no_loss"),
    Mutation("training/metrics.py", "args.tensorboard_log_interval if written else None", "args.tensorboard_log_interval", "training/test_metrics.py::test_without_a_writer_the_console_alone_is_logged"),
)  # fmt: skip

SCHEDULE = (
    Mutation("schedule/table.py", ' + self.drawn().encode()', "", DIGESTS),
    Mutation("schedule/table.py", "if self._window(w).any()", "if True", DIGESTS),
    Mutation("schedule/table.py", "self.seed % 2**64, window]", "self.seed % 2**64, 0]", "schedule/test_table.py::test_windows_are_drawn_apart"),
    Mutation("schedule/table.py", "since_warmup = step - self.warmup_steps", "since_warmup = step", "schedule/test_table.py::test_single_steps_are_the_tables_after_warmup"),
    Mutation("schedule/table.py", "seed=config.seed,", "seed=1234,", EVERY_SETTING),
    Mutation("schedule/table.py", "            max_active=max_active,", "            max_active=len(stage_chunks),", EVERY_SETTING),
    Mutation("schedule/rate.py", "self.floor * steps + extra", "extra", "schedule/test_table.py::test_a_falling_rate_ends_at_its_floor"),
    Mutation("schedule/shifted.py", "random.permutation(num_layers).tolist()", "range(num_layers)", "schedule/test_shifted.py::test_layers_take_turns_in_random_order"),
    Mutation("schedule/balanced.py", "int(random.integers(len(self.slots.sizes)))", "0", "schedule/test_balanced.py::test_where_a_step_begins_in_depth_is_drawn"),
)  # fmt: skip

TRAINERS = (
    Mutation("trainers/same_schedule.py", "    competition.follow(settings)\n", "", SAVED_SCHEDULE),
    Mutation("trainers/model_competition.py", "1.0 / num_microbatches", "1.0", "trainers/test_model_competition.py::test_metrics_are_those_of_the_step_on_every_rank[1-2]"),
)  # fmt: skip

VISION = (
    Mutation("vlm/transformers.py", "config.num_moe_experts = max(part.num_moe_experts for part in with_experts)", "pass", "vlm/test_layouts.py::test_microbatches_do_not_multiply_losses_of_routers[dense]"),
    Mutation("vlm/model.py", "padding_mask=padding).transpose(0, 1)", "padding_mask=None).transpose(0, 1)", f"{TEXT_ALONE}[competes]"),
    Mutation("vlm/model.py", "spare_padding(layer)", "pass", f"{TEXT_ALONE}[normal]"),
    Mutation("vlm/model.py", "self._unseen = self._embed_padding(images)", "pass", "vlm/test_layouts.py::test_a_rank_of_text_gives_every_parameter_a_gradient"),
    Mutation("vlm/model.py", "layer.set_layer_number(before + layer.layer_number)", "pass", "vlm/test_model.py::test_layers_are_numbered_through_the_model"),
    Mutation("vlm/model.py", "layer.router.bias = None", "layer.router.bias = layer.router.bias", "vlm/test_model.py::test_layers_are_numbered_through_the_model"),
    Mutation("vlm/model.py", 'keywords | {"padding_mask": self._padding_mask}', "keywords", "vlm/test_padding.py::test_fillers_are_no_tokens_to_routers_of_the_language_model"),
    Mutation("vlm/padding.py", "follows[:, 0] = True", "pass", "vlm/test_padding.py::test_positions_after_the_last_token_are_padding"),
    Mutation("vlm/tower.py", "        self.ln_post = None", "        pass", "vlm/test_tower.py::test_the_states_before_the_last_layer_are_transformers[siglip]"),
    Mutation("vlm/tower.py", "IN_CHECKPOINTS if config.num_moe_experts else OF_DENSE_LAYERS", "IN_CHECKPOINTS", "vlm/test_checkpoint.py::test_norms_of_dense_towers_have_transformer_engines_names"),
    Mutation("vlm/projector.py", "(dispatcher.hidden_shape_before_permute[0], width)", "dispatcher.hidden_shape_before_permute", "vlm/test_projector.py::test_a_layer_equals_the_dense_reference[projector-normal]"),
    Mutation("moe/biased_experts.py", "output.clone()", "output", "vlm/test_projector.py::test_a_layer_equals_the_dense_reference[siglip-normal]"),
    Mutation("moe/metrics.py", "layer_number, self.counts.slots if self.counts else num_layers", "layer_number, num_layers", "vlm/test_metrics.py::test_every_layer_reports_under_its_number[1]"),
)  # fmt: skip

MUTATIONS = ROUTING + LAYERS + SCHEDULE + TRAINERS + VISION
