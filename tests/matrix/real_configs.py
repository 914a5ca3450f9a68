"""The 48 architectures at sizes that were published: what differs from the defaults of their classes of transformers.

Parameters are those that the authors or the pages of their weights say, in millions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from profiles.models.profile import WorkloadSpec


@dataclass(frozen=True, kw_only=True)
class Real:
    """A published model: how it is called, its configuration, and its parameters in millions."""

    name: str
    config: dict[str, Any]
    published: float

    @property
    def spec(self) -> WorkloadSpec:
        return WorkloadSpec(kind="transformers", name=self.name, config=self.config)


def _of(name: str, published: float, architecture: str, family: str, **config: Any) -> Real:
    return Real(
        name=name, published=published, config={"model_type": family, "architectures": [architecture], **config}
    )


def _text(
    hidden: int, inner: int, layers: int, heads: int, kv_heads: int, vocabulary: int, **more: Any
) -> dict[str, Any]:
    return {
        "hidden_size": hidden, "intermediate_size": inner, "num_hidden_layers": layers, "num_attention_heads": heads,
        "num_key_value_heads": kv_heads, "vocab_size": vocabulary, **more,
    }  # fmt: skip


def _pairs(
    width: int, inner: int, heads: int, encoder: int, decoder: int, vocabulary: int, **more: Any
) -> dict[str, Any]:
    return {
        "d_model": width, "encoder_ffn_dim": inner, "decoder_ffn_dim": inner, "encoder_attention_heads": heads,
        "decoder_attention_heads": heads, "encoder_layers": encoder, "decoder_layers": decoder,
        "vocab_size": vocabulary, **more,
    }  # fmt: skip


LARGE = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
SWIN_LARGE = {"embed_dim": 192, "depths": [2, 2, 18, 2], "num_heads": [6, 12, 24, 48], "window_size": 12,
              "image_size": 384}  # fmt: skip
QWEN_WORDS = {"image_token_id": 151655, "video_token_id": 151656, "vision_start_token_id": 151652,
              "vision_end_token_id": 151653}  # fmt: skip
RESNET_50 = {"model_type": "resnet", "out_features": ["stage4"]}

GENERATION = [
    _of("gpt2-xl", 1_558, "GPT2LMHeadModel", "gpt2", n_embd=1600, n_layer=48, n_head=25, n_positions=1024,
        vocab_size=50257),
    _of("dialogpt-medium", 355, "GPT2LMHeadModel", "gpt2", n_embd=1024, n_layer=24, n_head=16, n_positions=1024,
        vocab_size=50257),
    _of("llama-3.1-8b", 8_030, "LlamaForCausalLM", "llama", max_position_embeddings=131072, rope_theta=500000.0,
        **_text(4096, 14336, 32, 32, 8, 128256)),
    _of("qwen2.5-7b", 7_616, "Qwen2ForCausalLM", "qwen2", max_position_embeddings=131072,
        **_text(3584, 18944, 28, 28, 4, 152064)),
    _of("qwen3-8b", 8_191, "Qwen3ForCausalLM", "qwen3", head_dim=128, max_position_embeddings=40960,
        **_text(4096, 12288, 36, 32, 8, 151936)),
    _of("mistral-7b", 7_242, "MistralForCausalLM", "mistral", sliding_window=4096, max_position_embeddings=32768,
        **_text(4096, 14336, 32, 32, 8, 32000)),
    _of("mixtral-8x7b", 46_703, "MixtralForCausalLM", "mixtral", num_local_experts=8, num_experts_per_tok=2,
        max_position_embeddings=32768, **_text(4096, 14336, 32, 32, 8, 32000)),
    _of("qwen3-30b-a3b", 30_532, "Qwen3MoeForCausalLM", "qwen3_moe", head_dim=128, moe_intermediate_size=768,
        num_experts=128, num_experts_per_tok=8, max_position_embeddings=40960,
        **_text(2048, 6144, 48, 32, 4, 151936)),
    _of("deepseek-v2-lite", 15_706, "DeepseekV2ForCausalLM", "deepseek_v2", n_routed_experts=64, n_shared_experts=2,
        num_experts_per_tok=6, moe_intermediate_size=1408, first_k_dense_replace=1, q_lora_rank=None,
        kv_lora_rank=512, qk_nope_head_dim=128, qk_rope_head_dim=64, v_head_dim=128, n_group=1, topk_group=1,
        topk_method="greedy", max_position_embeddings=163840, **_text(2048, 10944, 27, 16, 16, 102400)),
    _of("deepseek-v3", 671_026, "DeepseekV3ForCausalLM", "deepseek_v3", n_routed_experts=256, n_shared_experts=1,
        num_experts_per_tok=8, moe_intermediate_size=2048, first_k_dense_replace=3, q_lora_rank=1536,
        kv_lora_rank=512, qk_nope_head_dim=128, qk_rope_head_dim=64, v_head_dim=128, n_group=8, topk_group=4,
        max_position_embeddings=163840, **_text(7168, 18432, 61, 128, 128, 129280)),
    _of("gpt-neox-20b", 20_555, "GPTNeoXForCausalLM", "gpt_neox", hidden_size=6144, intermediate_size=24576,
        num_hidden_layers=44, num_attention_heads=64, vocab_size=50432, max_position_embeddings=2048),
    _of("opt-6.7b", 6_658, "OPTForCausalLM", "opt", hidden_size=4096, ffn_dim=16384, num_hidden_layers=32,
        num_attention_heads=32, word_embed_proj_dim=4096, vocab_size=50272),
    _of("phi-3-mini", 3_821, "Phi3ForCausalLM", "phi3", max_position_embeddings=4096, sliding_window=2047,
        **_text(3072, 8192, 32, 32, 32, 32064)),
    _of("phi-4", 14_660, "Phi3ForCausalLM", "phi3", max_position_embeddings=16384, pad_token_id=100349,
        bos_token_id=100257, eos_token_id=100265, **_text(5120, 17920, 40, 40, 10, 100352)),
    _of("falcon-7b", 6_922, "FalconForCausalLM", "falcon", hidden_size=4544, num_hidden_layers=32,
        num_attention_heads=71, vocab_size=65024, multi_query=True, parallel_attn=True),
    _of("mpt-7b", 6_649, "MptForCausalLM", "mpt", d_model=4096, n_heads=32, n_layers=32, max_seq_len=2048,
        vocab_size=50432),
    _of("gemma-2-9b", 9_242, "Gemma2ForCausalLM", "gemma2", head_dim=256, sliding_window=4096,
        query_pre_attn_scalar=256, **_text(3584, 14336, 42, 16, 8, 256000)),
    _of("gemma-3-1b", 1_000, "Gemma3ForCausalLM", "gemma3_text", head_dim=256, sliding_window=512,
        max_position_embeddings=32768, **_text(1152, 6912, 26, 4, 1, 262144)),
    _of("glm-4-9b", 9_400, "Glm4ForCausalLM", "glm4", head_dim=128, max_position_embeddings=32768,
        **_text(4096, 13696, 40, 32, 2, 151552)),
    _of("mamba2-2.7b", 2_703, "Mamba2ForCausalLM", "mamba2", hidden_size=2560, num_heads=80, head_dim=64,
        state_size=128, num_hidden_layers=64, vocab_size=50288, n_groups=1, chunk_size=256, expand=2,
        tie_word_embeddings=True),
    _of("rwkv-4-1b5", 1_515, "RwkvForCausalLM", "rwkv", hidden_size=2048, num_hidden_layers=24, vocab_size=50277,
        context_length=1024),
    _of("llama-4-scout-text", 107_770, "Llama4ForCausalLM", "llama4_text", head_dim=128, intermediate_size_mlp=16384,
        num_local_experts=16, num_experts_per_tok=1, interleave_moe_layer_step=1, attention_chunk_size=8192,
        **_text(5120, 8192, 48, 40, 8, 202048)),
    _of("gpt-oss-20b", 20_915, "GptOssForCausalLM", "gpt_oss", head_dim=64, sliding_window=128, num_local_experts=32,
        num_experts_per_tok=4, **_text(2880, 2880, 24, 64, 8, 201088)),
]  # fmt: skip
TRANSLATION = [
    _of("t5-large", 738, "T5ForConditionalGeneration", "t5", d_model=1024, d_kv=64, d_ff=4096, num_layers=24,
        num_heads=16, decoder_start_token_id=0),
    _of("bart-large", 406, "BartForConditionalGeneration", "bart"),
    _of("mbart-large-50", 611, "MBartForConditionalGeneration", "mbart", vocab_size=250054),
    _of("opus-mt-en-de", 74.4, "MarianMTModel", "marian", pad_token_id=58100, decoder_start_token_id=58100,
        max_position_embeddings=512, **_pairs(512, 2048, 8, 6, 6, 58101)),
    _of("blenderbot-3b", 2_696, "BlenderbotForConditionalGeneration", "blenderbot"),
    _of("nllb-200-600m", 615, "M2M100ForConditionalGeneration", "m2m_100", **_pairs(1024, 4096, 16, 12, 12, 256206)),
]  # fmt: skip
UNDERSTANDING = [
    _of("bert-large-qa", 334, "BertForQuestionAnswering", "bert", **LARGE),
    _of("deberta-v3-large-qa", 434, "DebertaV2ForQuestionAnswering", "deberta-v2", **LARGE, vocab_size=128100,
        relative_attention=True, pos_att_type=["p2c", "c2p"], position_buckets=256, norm_rel_ebd="layer_norm",
        share_att_key=True, position_biased_input=False, max_relative_positions=-1, type_vocab_size=0),
    _of("roberta-large", 355, "RobertaForSequenceClassification", "roberta", **LARGE, vocab_size=50265,
        max_position_embeddings=514, type_vocab_size=1),
]  # fmt: skip
IMAGES = [
    _of("vit-large-16", 304, "ViTForImageClassification", "vit", **LARGE, num_labels=1000),
    _of("deit-base-16", 86.6, "DeiTForImageClassification", "deit", num_labels=1000),
    _of("convnext-large", 197.8, "ConvNextForImageClassification", "convnext", depths=[3, 3, 27, 3],
        hidden_sizes=[192, 384, 768, 1536], drop_path_rate=0.1, num_labels=1000),
    _of("swin-base", 87.8, "SwinForImageClassification", "swin", embed_dim=128, depths=[2, 2, 18, 2],
        num_heads=[4, 8, 16, 32], num_labels=1000),
    _of("resnet-50", 25.6, "ResNetForImageClassification", "resnet", num_labels=1000),
    _of("efficientnet-b7", 66.3, "EfficientNetForImageClassification", "efficientnet", num_labels=1000),
    _of("detr-resnet-50", 41.5, "DetrForObjectDetection", "detr", backbone_config=RESNET_50, use_timm_backbone=False,
        num_labels=91),
    _of("rt-detr-r50", 42.7, "RTDetrForObjectDetection", "rt_detr", num_labels=80),
    _of("mask2former-swin-large", 216, "Mask2FormerForUniversalSegmentation", "mask2former", num_labels=80,
        num_queries=200, backbone_config={"model_type": "swin", **SWIN_LARGE, "out_features": ["stage1", "stage2",
        "stage3", "stage4"]}),
    _of("sam-vit-huge", 641, "SamModel", "sam", vision_config={"hidden_size": 1280, "num_hidden_layers": 32,
        "num_attention_heads": 16, "global_attn_indexes": [7, 15, 23, 31], "mlp_dim": 5120}),
    _of("segformer-b5", 84.7, "SegformerForSemanticSegmentation", "segformer", hidden_sizes=[64, 128, 320, 512],
        depths=[3, 6, 40, 3], decoder_hidden_size=768, num_labels=150),
]  # fmt: skip
SEVERAL = [
    _of("clip-vit-large-14", 428, "CLIPModel", "clip", projection_dim=768, text_config={"hidden_size": 768,
        "intermediate_size": 3072, "num_attention_heads": 12, "num_hidden_layers": 12}, vision_config={**LARGE,
        "patch_size": 14}),
    _of("llava-1.5-7b", 7_063, "LlavaForConditionalGeneration", "llava", image_token_index=32000, text_config={
        "model_type": "llama", "vocab_size": 32064, "max_position_embeddings": 4096}, vision_config={**LARGE,
        "model_type": "clip_vision_model", "image_size": 336, "patch_size": 14, "projection_dim": 768}),
    _of("qwen2-vl-7b", 8_291, "Qwen2VLForConditionalGeneration", "qwen2_vl", **QWEN_WORDS,
        text_config={"model_type": "qwen2_vl_text", "max_position_embeddings": 32768, "rope_parameters": {
            "rope_type": "default", "mrope_section": [16, 24, 24], "rope_theta": 1000000.0},
            **_text(3584, 18944, 28, 28, 4, 152064)},
        vision_config={"model_type": "qwen2_vl", "depth": 32, "embed_dim": 1280, "hidden_size": 3584, "num_heads": 16,
        "mlp_ratio": 4, "patch_size": 14, "spatial_merge_size": 2, "temporal_patch_size": 2}),
    _of("whisper-large-v3", 1_543, "WhisperForConditionalGeneration", "whisper", num_mel_bins=128,
        **_pairs(1280, 5120, 20, 32, 32, 51866)),
    _of("wav2vec2-large", 315, "Wav2Vec2ForCTC", "wav2vec2", **LARGE),
]  # fmt: skip
REAL = (*GENERATION, *TRANSLATION, *UNDERSTANDING, *IMAGES, *SEVERAL)
