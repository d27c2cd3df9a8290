import torch

from ablatio import attentions


def test_the_first_token_sees_itself_alone():
    attention = attentions.build("elu_kernel", d_model=8, d_head=4, n_heads=2)
    x = torch.linspace(-1, 1, 24).view(1, 3, 8)
    torch.testing.assert_close(attention(x, None)[:, 0], attention.o_proj(attention.v_proj(x[:, 0])))
