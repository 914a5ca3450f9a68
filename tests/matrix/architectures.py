"""48 architectures of transformers, each by a configuration as small as it goes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from profiles.models.profile import WorkloadSpec


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """A model of the matrix: what it is called, its configuration, its task where that is not written there.

    `size` is that of the samples it is tried with.
    """

    name: str
    config: dict[str, Any]
    size: int
    task: str = ""

    @property
    def spec(self) -> WorkloadSpec:
        return WorkloadSpec(kind="transformers", name=self.name, config=self.config, task=self.task)


TEXT = {
    "vocab_size": 96, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 128, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
BERT = {key: value for key, value in TEXT.items() if key != "num_key_value_heads"} | {"num_hidden_layers": 4}
GPT2 = {"n_layer": 4, "n_embd": 32, "n_head": 4, "n_positions": 128, "vocab_size": 96}
PAIRS = {
    "vocab_size": 96, "d_model": 32, "encoder_layers": 4, "decoder_layers": 4, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "max_position_embeddings": 128,
    "pad_token_id": 1, "decoder_start_token_id": 2, "bos_token_id": 0, "eos_token_id": 2, "forced_eos_token_id": 2,
}  # fmt: skip
MIXTURE = TEXT | {"num_experts_per_tok": 2, "num_local_experts": 4}
DEEPSEEK = TEXT | {
    "num_key_value_heads": 4, "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32,
    "n_shared_experts": 1, "first_k_dense_replace": 1, "q_lora_rank": None, "kv_lora_rank": 16, "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8, "v_head_dim": 8, "n_group": 1, "topk_group": 1,
}  # fmt: skip
VISION = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4, "image_size": 32,
    "patch_size": 8, "num_channels": 3,
}  # fmt: skip
SWIN = {"embed_dim": 16, "depths": [2, 4], "num_heads": [2, 4], "window_size": 4, "patch_size": 4, "num_channels": 3}
RESNET = {"embedding_size": 8, "hidden_sizes": [8, 16, 16, 32], "depths": [2, 3, 2, 2], "layer_type": "bottleneck"}
TINY_TEXT = TEXT | {"num_hidden_layers": 3}
CLIP = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4}


def _of(name: str, architecture: str, size: int, **config: Any) -> Architecture:
    return Architecture(name=name, config={"architectures": [architecture], **config}, size=size)


GENERATION = [
    _of("gpt2", "GPT2LMHeadModel", 32, model_type="gpt2", **GPT2),
    _of("dialogpt", "GPT2LMHeadModel", 32, model_type="gpt2", **GPT2),
    _of("llama", "LlamaForCausalLM", 32, model_type="llama", **TEXT),
    _of("qwen2", "Qwen2ForCausalLM", 32, model_type="qwen2", **TEXT),
    _of("qwen3", "Qwen3ForCausalLM", 32, model_type="qwen3", head_dim=8, **TEXT),
    _of("mistral", "MistralForCausalLM", 32, model_type="mistral", sliding_window=16, **TEXT),
    _of("mixtral", "MixtralForCausalLM", 32, model_type="mixtral", **MIXTURE),
    _of("qwen3_moe", "Qwen3MoeForCausalLM", 32, model_type="qwen3_moe", head_dim=8, moe_intermediate_size=32,
        num_experts=4, num_experts_per_tok=2, **TEXT),
    _of("deepseek_v2", "DeepseekV2ForCausalLM", 32, model_type="deepseek_v2", **DEEPSEEK),
    _of("deepseek_v3", "DeepseekV3ForCausalLM", 32, model_type="deepseek_v3", **DEEPSEEK | {"q_lora_rank": 16}),
    _of("gpt_neox", "GPTNeoXForCausalLM", 32, model_type="gpt_neox", **TEXT),
    _of("opt", "OPTForCausalLM", 32, model_type="opt", **TEXT, ffn_dim=64, word_embed_proj_dim=32),
    _of("phi3", "Phi3ForCausalLM", 32, model_type="phi3", **TEXT),
    _of("phi4", "Phi3ForCausalLM", 32, model_type="phi3", **TEXT, partial_rotary_factor=0.5, tie_word_embeddings=True),
    _of("falcon", "FalconForCausalLM", 32, model_type="falcon", multi_query=True, parallel_attn=True, **TEXT),
    _of("mpt", "MptForCausalLM", 32, model_type="mpt", d_model=32, n_heads=4, n_layers=4, max_seq_len=128,
        vocab_size=96),
    _of("gemma2", "Gemma2ForCausalLM", 32, model_type="gemma2", head_dim=8, sliding_window=16, **TEXT),
    _of("gemma3", "Gemma3ForCausalLM", 32, model_type="gemma3_text", head_dim=8, sliding_window=16, **TEXT),
    _of("glm4", "Glm4ForCausalLM", 32, model_type="glm4", head_dim=8, **TEXT),
    _of("mamba2", "Mamba2ForCausalLM", 32, model_type="mamba2", hidden_size=32, num_heads=8, head_dim=8, state_size=16,
        num_hidden_layers=4, vocab_size=96, n_groups=2, chunk_size=8, expand=2),
    _of("rwkv", "RwkvForCausalLM", 8, model_type="rwkv", hidden_size=32, num_hidden_layers=4, vocab_size=96,
        context_length=64, attention_hidden_size=32),
    _of("llama4", "Llama4ForCausalLM", 32, model_type="llama4_text", head_dim=8, intermediate_size_mlp=64,
        interleave_moe_layer_step=1, attention_chunk_size=64,
        **MIXTURE | {"num_experts_per_tok": 1}),
    _of("gpt_oss", "GptOssForCausalLM", 32, model_type="gpt_oss", head_dim=8, sliding_window=16, **MIXTURE),
]  # fmt: skip
TRANSLATION = [
    _of("t5", "T5ForConditionalGeneration", 32, model_type="t5", vocab_size=96, d_model=32, d_kv=8, d_ff=64,
        num_layers=4, num_heads=4, decoder_start_token_id=0, pad_token_id=0, eos_token_id=1),
    _of("bart", "BartForConditionalGeneration", 32, model_type="bart", **PAIRS),
    _of("mbart", "MBartForConditionalGeneration", 32, model_type="mbart", **PAIRS),
    _of("marian", "MarianMTModel", 32, model_type="marian", **PAIRS | {"pad_token_id": 95}),
    _of("blenderbot", "BlenderbotForConditionalGeneration", 32, model_type="blenderbot", **PAIRS),
    _of("nllb", "M2M100ForConditionalGeneration", 32, model_type="m2m_100", **PAIRS),
]  # fmt: skip
UNDERSTANDING = [
    _of("bert_qa", "BertForQuestionAnswering", 32, model_type="bert", **BERT),
    _of("deberta_v2_qa", "DebertaV2ForQuestionAnswering", 32, model_type="deberta-v2", **BERT, relative_attention=True,
        pos_att_type=["p2c", "c2p"], position_buckets=16, norm_rel_ebd="layer_norm", share_att_key=True),
    _of("roberta", "RobertaForSequenceClassification", 32, model_type="roberta", **BERT | {"pad_token_id": 1}),
]  # fmt: skip
IMAGES = [
    _of("vit", "ViTForImageClassification", 32, model_type="vit", **VISION),
    _of("deit", "DeiTForImageClassification", 32, model_type="deit", **VISION),
    _of("convnext", "ConvNextForImageClassification", 64, model_type="convnext", hidden_sizes=[8, 16, 16, 32],
        depths=[2, 2, 4, 2], drop_path_rate=0.1, num_channels=3),
    _of("swin", "SwinForImageClassification", 64, model_type="swin", image_size=64, **SWIN),
    _of("resnet", "ResNetForImageClassification", 64, model_type="resnet", **RESNET),
    _of("efficientnet", "EfficientNetForImageClassification", 64, model_type="efficientnet", image_size=64,
        width_coefficient=0.25, depth_coefficient=1.0, hidden_dim=320),
    _of("detr", "DetrForObjectDetection", 64, model_type="detr", backbone_config={"model_type": "resnet", **RESNET,
        "out_features": ["stage4"]}, use_timm_backbone=False, d_model=32, encoder_layers=3, decoder_layers=3,
        encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=64, decoder_ffn_dim=64, num_queries=10),
    _of("rt_detr", "RTDetrForObjectDetection", 64, model_type="rt_detr", backbone_config={
        "model_type": "rt_detr_resnet", **RESNET, "out_features": ["stage2", "stage3", "stage4"]},
        encoder_in_channels=[64, 64, 128], d_model=32,
        encoder_hidden_dim=32, encoder_ffn_dim=64, decoder_layers=3, decoder_ffn_dim=64, num_queries=20,
        decoder_in_channels=[32, 32, 32], num_denoising=0, encoder_attention_heads=4, decoder_attention_heads=4),
    _of("mask2former", "Mask2FormerForUniversalSegmentation", 64, model_type="mask2former", backbone_config={
        "model_type": "swin", "image_size": 64, **SWIN, "depths": [2, 2, 2, 2], "num_heads": [1, 2, 2, 4],
        "out_features": ["stage1", "stage2", "stage3", "stage4"]}, feature_size=32, mask_feature_size=32, hidden_dim=32,
        encoder_feedforward_dim=64, dim_feedforward=64, encoder_layers=2, decoder_layers=3, num_attention_heads=4,
        num_queries=10, train_num_points=64),
    _of("sam", "SamModel", 64, model_type="sam", vision_config={"hidden_size": 32, "output_channels": 16,
        "num_hidden_layers": 4, "num_attention_heads": 4, "image_size": 64, "patch_size": 8, "window_size": 4,
        "global_attn_indexes": [1, 3], "mlp_dim": 64, "num_pos_feats": 8}, prompt_encoder_config={"hidden_size": 16,
        "image_size": 64, "patch_size": 8}, mask_decoder_config={"hidden_size": 16, "mlp_dim": 32,
        "num_hidden_layers": 2, "num_attention_heads": 2, "iou_head_hidden_dim": 16}),
    _of("segformer", "SegformerForSemanticSegmentation", 64, model_type="segformer", hidden_sizes=[8, 16, 24, 32],
        depths=[2, 2, 2, 2], num_attention_heads=[1, 2, 2, 4], decoder_hidden_size=32),
]  # fmt: skip
SEVERAL = [
    _of("clip", "CLIPModel", 16, model_type="clip", text_config={**CLIP, "vocab_size": 96,
        "max_position_embeddings": 16, "eos_token_id": 2},
        vision_config={**CLIP, "image_size": 32, "patch_size": 8}, projection_dim=16),
    _of("llava", "LlavaForConditionalGeneration", 48, model_type="llava", image_token_index=90,
        text_config={"model_type": "llama", **TINY_TEXT},
        vision_config={"model_type": "clip_vision_model", **CLIP, "image_size": 32, "patch_size": 8}),
    _of("qwen2_vl", "Qwen2VLForConditionalGeneration", 96, model_type="qwen2_vl", image_token_id=90,
        video_token_id=91, vision_start_token_id=92, vision_end_token_id=93, text_config={"model_type": "qwen2_vl_text",
        **TINY_TEXT, "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}},
        vision_config={"model_type": "qwen2_vl", "depth": 3, "embed_dim": 32, "hidden_size": 32, "num_heads": 4,
        "mlp_ratio": 2, "patch_size": 14, "spatial_merge_size": 2, "temporal_patch_size": 2}),
    _of("whisper", "WhisperForConditionalGeneration", 16, model_type="whisper", **PAIRS | {
        "max_source_positions": 32, "max_target_positions": 32, "num_mel_bins": 8}),
    _of("wav2vec2", "Wav2Vec2ForCTC", 16_000, model_type="wav2vec2", **BERT, conv_dim=[8] * 7,
        num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=4, num_feat_extract_layers=7),
]  # fmt: skip
ARCHITECTURES = (*GENERATION, *TRANSLATION, *UNDERSTANDING, *IMAGES, *SEVERAL)
