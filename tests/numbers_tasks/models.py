"""30 models of all kinds, of a size at which a step takes some tenths of a second on two cores."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any

OWN = "tests.numbers_tasks.modules"
TEXT = {
    "vocab_size": 2048, "hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 6, "num_attention_heads": 4,
    "max_position_embeddings": 128, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
GROUPED = TEXT | {"num_key_value_heads": 2}
PAIRS = {
    "vocab_size": 2048, "d_model": 256, "encoder_layers": 3, "decoder_layers": 3, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 768, "decoder_ffn_dim": 768, "max_position_embeddings": 128,
    "pad_token_id": 1, "decoder_start_token_id": 2, "bos_token_id": 0, "eos_token_id": 2, "forced_eos_token_id": 2,
}  # fmt: skip
VISION = {
    "hidden_size": 192, "intermediate_size": 768, "num_hidden_layers": 6, "num_attention_heads": 4, "image_size": 160,
    "patch_size": 16, "num_channels": 3,
}  # fmt: skip
SWIN = {"embed_dim": 48, "depths": [2, 2, 4, 2], "num_heads": [2, 2, 4, 4], "window_size": 4, "patch_size": 4}
RESNET = {"embedding_size": 32, "hidden_sizes": [64, 128, 256, 512], "depths": [2, 2, 3, 2], "layer_type": "bottleneck"}
CLIP = {"hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 4, "num_attention_heads": 4}


@dataclass(frozen=True, kw_only=True)
class Model:
    """A model by its configuration, or by the name of a factory in `modules`, and the samples of a step.

    `kind` is what it is for; `size` that of its samples, 0 for the usual one.
    """

    name: str
    kind: str
    batch: int = 8
    size: int = 0
    config: dict[str, Any] = field(default_factory=dict)

    @property
    def factory(self) -> str:
        """What builds it, where it has no configuration."""
        return "" if self.config else f"{OWN}:{self.name}"


def _of(
    name: str, kind: str, architecture: str, model_type: str, batch: int = 8, size: int = 0, **config: Any
) -> Model:
    fields = copy.deepcopy({"architectures": [architecture], "model_type": model_type, **config})
    return Model(name=name, kind=kind, batch=batch, size=size, config=fields)


MODELS = (
    _of("gpt2", "text", "GPT2LMHeadModel", "gpt2", n_layer=6, n_embd=256, n_head=4, n_positions=128, vocab_size=2048),
    _of("llama", "text", "LlamaForCausalLM", "llama", **GROUPED),
    _of("qwen3", "text", "Qwen3ForCausalLM", "qwen3", head_dim=64, **GROUPED),
    _of("opt", "text", "OPTForCausalLM", "opt", **TEXT, ffn_dim=768, word_embed_proj_dim=256),
    _of("gemma3", "text", "Gemma3ForCausalLM", "gemma3_text", head_dim=64, sliding_window=64, **GROUPED),
    _of("mixtral", "text", "MixtralForCausalLM", "mixtral", num_local_experts=4, num_experts_per_tok=2,
        **GROUPED | {"intermediate_size": 384, "num_hidden_layers": 4}),
    _of("bert", "text", "BertForQuestionAnswering", "bert", **TEXT),
    _of("roberta", "text", "RobertaForSequenceClassification", "roberta", size=96, **TEXT | {"pad_token_id": 1}),
    _of("deberta", "text", "DebertaV2ForQuestionAnswering", "deberta-v2", **TEXT | {"num_hidden_layers": 4},
        relative_attention=True, pos_att_type=["p2c", "c2p"], position_buckets=32, norm_rel_ebd="layer_norm",
        share_att_key=True),
    _of("t5", "encoder-decoder", "T5ForConditionalGeneration", "t5", vocab_size=2048, d_model=256, d_kv=64, d_ff=768,
        num_layers=3, num_heads=4, decoder_start_token_id=0, pad_token_id=0, eos_token_id=1),
    _of("bart", "encoder-decoder", "BartForConditionalGeneration", "bart", **PAIRS),
    _of("marian", "encoder-decoder", "MarianMTModel", "marian", **PAIRS | {"pad_token_id": 2047}),
    _of("vit", "vision", "ViTForImageClassification", "vit", **VISION),
    _of("swin", "vision", "SwinForImageClassification", "swin", image_size=128,
        **SWIN | {"depths": [2, 2, 4], "num_heads": [2, 4, 4]}),
    _of("convnext", "vision", "ConvNextForImageClassification", "convnext", size=160, num_channels=3,
        hidden_sizes=[48, 96, 192, 384], depths=[2, 2, 4, 2], drop_path_rate=0.1),
    _of("resnet", "vision", "ResNetForImageClassification", "resnet", size=224, **RESNET),
    _of("efficientnet", "vision", "EfficientNetForImageClassification", "efficientnet", image_size=192,
        width_coefficient=0.5, depth_coefficient=0.5, hidden_dim=640),
    _of("detr", "detection", "DetrForObjectDetection", "detr", size=224, backbone_config={
        "model_type": "resnet", **RESNET, "out_features": ["stage4"]}, use_timm_backbone=False, d_model=128,
        encoder_layers=3, decoder_layers=3, encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=512,
        decoder_ffn_dim=512, num_queries=50),
    _of("rt_detr", "detection", "RTDetrForObjectDetection", "rt_detr", size=160, backbone_config={
        "model_type": "rt_detr_resnet", **RESNET, "out_features": ["stage2", "stage3", "stage4"]},
        encoder_in_channels=[128, 256, 512], d_model=128, encoder_hidden_dim=128, encoder_ffn_dim=512,
        decoder_layers=3, decoder_ffn_dim=512, num_queries=50, decoder_in_channels=[128, 128, 128], num_denoising=0,
        encoder_attention_heads=4, decoder_attention_heads=4),
    _of("segformer", "segmentation", "SegformerForSemanticSegmentation", "segformer", size=128,
        hidden_sizes=[32, 64, 128, 192], depths=[2, 2, 2, 2], num_attention_heads=[1, 2, 4, 4],
        decoder_hidden_size=128),
    _of("mask2former", "segmentation", "Mask2FormerForUniversalSegmentation", "mask2former", size=128,
        backbone_config={"model_type": "swin", "image_size": 128, **SWIN,
        "out_features": ["stage1", "stage2", "stage3", "stage4"]}, feature_size=64, mask_feature_size=64,
        hidden_dim=64, encoder_feedforward_dim=256, dim_feedforward=256, encoder_layers=2, decoder_layers=3,
        num_attention_heads=4, num_queries=20, train_num_points=256),
    _of("clip", "several", "CLIPModel", "clip", text_config={**CLIP, "vocab_size": 2048, "max_position_embeddings": 64,
        "eos_token_id": 2}, vision_config={**CLIP, "image_size": 128, "patch_size": 16}, projection_dim=128),
    _of("llava", "several", "LlavaForConditionalGeneration", "llava", size=128, image_token_index=2000,
        text_config={"model_type": "llama", **GROUPED, "num_hidden_layers": 4},
        vision_config={"model_type": "clip_vision_model", **CLIP, "image_size": 96, "patch_size": 16}),
    _of("whisper", "speech", "WhisperForConditionalGeneration", "whisper", size=64, **PAIRS | {
        "max_source_positions": 150, "max_target_positions": 64, "num_mel_bins": 40}),
    _of("wav2vec2", "speech", "Wav2Vec2ForCTC", "wav2vec2", size=16_000, **TEXT | {"num_hidden_layers": 4,
        "vocab_size": 32}, conv_dim=[128] * 7, num_conv_pos_embeddings=32, num_conv_pos_embedding_groups=4),
    *(Model(name=name, kind="recurrent") for name in ("lstm", "gru", "translator")),
    *(Model(name=name, kind=kind) for name, kind in (("unet", "segmentation"), ("denoiser", "vision"))),
)  # fmt: skip
