#include "xlstm/tokenizer.hpp"

#include <algorithm>
#include <fstream>
#include <nlohmann/json.hpp>
#include <system_error>
#include <utility>

#include "core/check.hpp"
#include "core/json.hpp"
#include "text/added_tokens.hpp"
#include "text/bpe.hpp"
#include "text/decoder.hpp"
#include "text/json_node.hpp"
#include "text/normalizer.hpp"
#include "text/post_processor.hpp"
#include "text/pre_tokenizer.hpp"
#include "text/utf8.hpp"

namespace xlstm {

using text::JsonNode;

struct Tokenizer::Impl {
  explicit Impl(const JsonNode& root);
  void read_config(const JsonNode& config);

  /// Text that a token stands for, before decoding; null if nothing has this id.
  const std::string* decoded_form(std::int32_t id) const {
    if (const text::AddedToken* token = added.find(id)) return &token->form;
    return model.token(id);
  }
  /// The same for decode(): null too if it is to be left out.
  const std::string* form_for_decoding(std::int32_t id, bool skip_special_tokens) const {
    XLSTM_CHECK(id >= 0 && id < size, invalid_argument,
                "decode: expected ids from 0 to {}, found {}", size - 1, id);
    const std::string* form = decoded_form(id);
    if (form != nullptr && skip_special_tokens && added.is_special_content(*form)) return nullptr;
    return form;
  }

  text::Bpe model;
  std::unique_ptr<text::Normalizer> normalizer;  // may be null
  text::AddedTokens added;
  text::PreTokenizerChain pre_tokenizer;
  text::PostProcessor post_processor;
  text::Decoder decoder;
  std::int32_t size = 0;
  std::optional<std::int32_t> bos;
  std::optional<std::int32_t> eos;
  std::optional<bool> add_bos;
  std::string description;
};

namespace {

constexpr std::size_t kLongestText = std::size_t{1} << 30U;  // positions are kept in 32 bits

const JsonNode& checked(const JsonNode& root) {
  if (const auto version = root.find("version"); version && version->string() != "1.0")
    version->fail_unsupported("the version \"" + version->string() + "\"");
  return root;
}

JsonNode bpe_model(const JsonNode& root) {
  JsonNode model = root.at("model");
  if (const auto type = model.find("type"); type && type->string() != "BPE")
    type->fail_unsupported("a model of type \"" + type->string() + "\"");
  return model;
}

/// A component as `info` shows it: its type, for a sequence those of its parts.
std::string type_names(const JsonNode& node) {
  const std::string& type = node.type();
  if (type != "Sequence") return type;
  std::string names;
  for (const char* key : {"normalizers", "pretokenizers"})
    if (const auto parts = node.find(key))
      for (const JsonNode& part : parts->elements())
        names += (names.empty() ? "" : " + ") + type_names(part);
  return names;
}

std::string read_file(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  XLSTM_CHECK(file, not_found, "{}: expected a file that can be read", path.string());
  std::string content((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  XLSTM_CHECK(!file.bad(), io, "{}: cannot be read", path.string());
  return content;
}

std::unique_ptr<Tokenizer::Impl> parse_files(std::string_view tokenizer_json,
                                             const std::string& name, std::string_view config_json,
                                             const std::string& config_name) {
  const nlohmann::json tokenizer = parse_json(tokenizer_json, name);
  auto impl = std::make_unique<Tokenizer::Impl>(JsonNode(tokenizer, name + ":"));
  if (!config_json.empty()) {
    const nlohmann::json config = parse_json(config_json, config_name);
    impl->read_config(JsonNode(config, config_name + ":"));
  }
  return impl;
}

/// Gives every word to the model.
class WordSink final : public text::PieceSink {
 public:
  WordSink(const text::Bpe& model, bool as_bytes, std::vector<std::int32_t>& ids)
      : encoder_(model, as_bytes), ids_(ids) {}
  void take(const text::Piece& piece) override { encoder_.encode(piece.text, ids_); }

 private:
  text::BpeEncoder encoder_;
  std::vector<std::int32_t>& ids_;
};

}  // namespace

Tokenizer::Impl::Impl(const JsonNode& root) : model(bpe_model(checked(root))) {
  description =
      fmt::format("BPE, {} tokens, {} merges", model.vocabulary_size(), model.merge_count());
  if (const auto node = root.find("normalizer")) {
    normalizer = text::read_normalizer(*node);
    description += ", " + type_names(*node);
  }
  if (const auto node = root.find("added_tokens"))
    added = text::AddedTokens(*node, model, normalizer.get());
  if (const auto node = root.find("pre_tokenizer")) {
    pre_tokenizer = text::PreTokenizerChain(*node, model.takes_bytes());
    description += ", " + type_names(*node);
  }
  if (const auto node = root.find("decoder")) decoder = text::Decoder(*node);
  size = std::max(model.id_limit(), added.id_limit());
  if (const auto node = root.find("post_processor")) {
    post_processor = text::PostProcessor(*node);
    if (post_processor.largest_id() >= size)
      node->fail_expected(fmt::format("ids below {} (not {})", size, post_processor.largest_id()));
  }
}

void Tokenizer::Impl::read_config(const JsonNode& config) {
  const auto token_id = [&](const char* key) -> std::optional<std::int32_t> {
    const auto node = config.find(key);
    if (!node) return std::nullopt;
    const std::string& content = node->is_object() ? node->at("content").string() : node->string();
    if (const text::AddedToken* token = added.find(content)) return token->id;
    return model.find(content);
  };
  bos = token_id("bos_token");
  eos = token_id("eos_token");
  if (const auto node = config.find("add_bos_token")) add_bos = node->boolean();
}

Tokenizer::Tokenizer(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Tokenizer::Tokenizer(Tokenizer&&) noexcept = default;
Tokenizer& Tokenizer::operator=(Tokenizer&&) noexcept = default;
Tokenizer::~Tokenizer() = default;

Tokenizer Tokenizer::load(const std::filesystem::path& tokenizer_json) {
  const std::filesystem::path config_path = tokenizer_json.parent_path() / "tokenizer_config.json";
  std::string config;
  std::error_code ignored;
  if (std::filesystem::exists(config_path, ignored)) config = read_file(config_path);
  return Tokenizer(parse_files(read_file(tokenizer_json), tokenizer_json.string(), config,
                               config_path.string()));
}

Tokenizer Tokenizer::parse(std::string_view tokenizer_json, std::string_view tokenizer_config) {
  return Tokenizer(
      parse_files(tokenizer_json, "tokenizer.json", tokenizer_config, "tokenizer_config.json"));
}

std::vector<std::int32_t> Tokenizer::encode(std::string_view text,
                                            const EncodeOptions& options) const {
  XLSTM_CHECK(text.size() <= kLongestText, invalid_argument,
              "encode: expected a text of at most {} bytes, found {}", kLongestText, text.size());
  const std::size_t invalid = text::find_invalid_utf8(text);
  XLSTM_CHECK(invalid == std::string_view::npos, invalid_argument,
              "encode: expected UTF-8, found a malformed character at byte {} (0x{:02x})", invalid,
              static_cast<unsigned char>(text[invalid]));

  const Impl& impl = *impl_;
  std::vector<std::int32_t> ids;
  WordSink words(impl.model, impl.pre_tokenizer.gives_bytes(), ids);
  const auto add = [&](const text::AddedToken& token) { ids.push_back(token.id); };
  const auto encode_normalized = [&](std::string_view stretch, bool at_start) {
    impl.added.split(
        stretch, true,
        [&](std::size_t begin, std::size_t end) {
          impl.pre_tokenizer.split({stretch.substr(begin, end - begin), at_start && begin == 0},
                                   words);
        },
        add);
  };
  const auto encode_raw = [&](std::size_t begin, std::size_t end) {
    const std::string_view stretch = text.substr(begin, end - begin);
    if (impl.normalizer == nullptr || impl.normalizer->leaves(stretch)) {
      encode_normalized(stretch, begin == 0);
      return;
    }
    text::NormalizedText normalized(stretch, begin == 0);
    impl.normalizer->apply(normalized);
    encode_normalized(normalized.text, normalized.at_start);
  };
  impl.added.split(text, false, encode_raw, add);
  return impl.post_processor.apply(std::move(ids), options.add_special_tokens);
}

std::string Tokenizer::decode(std::span<const std::int32_t> ids, bool skip_special_tokens) const {
  std::string result;
  text::Decoder::Run run(impl_->decoder);
  for (const std::int32_t id : ids)
    if (const std::string* form = impl_->form_for_decoding(id, skip_special_tokens))
      run.push(*form, result);
  run.finish(result);
  return result;
}

std::int32_t Tokenizer::size() const noexcept { return impl_->size; }

std::optional<std::int32_t> Tokenizer::token_to_id(std::string_view token) const {
  if (const text::AddedToken* added = impl_->added.find(token)) return added->id;
  return impl_->model.find(token);
}

std::string Tokenizer::id_to_token(std::int32_t id) const {
  if (const text::AddedToken* added = impl_->added.find(id)) return added->content;
  const std::string* token = impl_->model.token(id);
  return token == nullptr ? std::string() : *token;
}

bool Tokenizer::is_special(std::int32_t id) const noexcept {
  const text::AddedToken* added = impl_->added.find(id);
  return added != nullptr && added->special;
}

std::optional<std::int32_t> Tokenizer::bos_id() const noexcept { return impl_->bos; }
std::optional<std::int32_t> Tokenizer::eos_id() const noexcept { return impl_->eos; }
std::optional<bool> Tokenizer::add_bos_token() const noexcept { return impl_->add_bos; }

bool Tokenizer::template_adds_bos() const noexcept {
  const std::vector<std::int32_t> leading = impl_->post_processor.leading_ids();
  return impl_->bos && !leading.empty() && leading.front() == *impl_->bos;
}

std::string Tokenizer::description() const { return impl_->description; }

struct StreamDecoder::Impl {
  const Tokenizer::Impl& tokenizer;
  bool skip_special_tokens;
  text::Decoder::Run run;
};

StreamDecoder::StreamDecoder(const Tokenizer& tokenizer, bool skip_special_tokens)
    : impl_(new Impl{*tokenizer.impl_, skip_special_tokens,
                     text::Decoder::Run(tokenizer.impl_->decoder)}) {}
StreamDecoder::StreamDecoder(StreamDecoder&&) noexcept = default;
StreamDecoder& StreamDecoder::operator=(StreamDecoder&&) noexcept = default;
StreamDecoder::~StreamDecoder() = default;

std::string StreamDecoder::push(std::int32_t id) {
  std::string text;
  if (const std::string* form = impl_->tokenizer.form_for_decoding(id, impl_->skip_special_tokens))
    impl_->run.push(*form, text);
  return text;
}

std::string StreamDecoder::finish() {
  std::string text;
  impl_->run.finish(text);
  return text;
}

}  // namespace xlstm
