// The client of DEL Serve: private prompts as differentially private counts.

export { DEFAULT_DELTA, epsilon, largestLoss, MAX_EPSILON_PER_TOKEN } from "./accounting.js";
export { Bundle, readArchive, type ChatFormat, type Files, type Manifest, type Plain, type Variant } from "./bundle.js";
export { DelClient, type CallOptions, type ClientOptions, type Model, type RequestOptions } from "./client.js";
export { Conversation, type ConversationOptions } from "./conversation.js";
export { detect, type Finding } from "./detect.js";
export type { EncodedPrompt, TokenizedPart } from "./encoder.js";
export {
  AccessDeniedError, BudgetExceededError, BundleError, BundleOutdatedError, BundleRejectedError, ConnectionFailedError,
  ContextFullError, DelError, FrameError, InvalidRequestError, MemoryInvalidError, OverloadedError, PolicyViolationError,
  ProtocolError, ServerError, StreamBrokenError, TimeoutExceededError, TrustUnavailableError, type Change,
} from "./errors.js";
export type { Chunk, TokenLogprobs, Usage } from "./events.js";
export type { Segment, Structure } from "./frame.js";
export type { Timeout } from "./http.js";
export { Ledger, type Budget, type Draw, type Spender } from "./ledger.js";
export type { PrivacyPolicy } from "./policy.js";
export { sample, type BinomialMechanism, type CategoricalMechanism, type Mechanism } from "./sampler.js";
export type { SamplingOptions } from "./sampling.js";
export { chatML, CLEAR, detected, mark, type ChatTemplate, type Message, type Padding, type Prompt, type Span } from "./spans.js";
export { MemoryStorage, type Storage } from "./storage.js";
export { CompletionStream, type Completion } from "./stream.js";
export { Tokenizer } from "./tokenizer.js";
export { Trust, type TrustRecord } from "./trust.js";
