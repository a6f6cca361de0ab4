#pragma once
// The whole C++ interface.

#include "xlstm/config.hpp"
#include "xlstm/device.hpp"
#include "xlstm/dtype.hpp"
#include "xlstm/error.hpp"
#include "xlstm/generate.hpp"
#include "xlstm/model.hpp"
#include "xlstm/state.hpp"
#include "xlstm/tensor.hpp"
#include "xlstm/tokenizer.hpp"
