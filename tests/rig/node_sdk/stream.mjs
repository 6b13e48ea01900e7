// Sends one chat request with the official SDK and prints one line of JSON with what the SDK made of the answer.
//
//     OPENAI_BASE_URL=... OPENAI_API_KEY=... node stream.mjs stream|create '{"model": ..., "messages": [...]}'
import OpenAI from "openai";

const [mode, body] = process.argv.slice(2);
const request = JSON.parse(body);
const client = new OpenAI({ maxRetries: 0, timeout: 30_000 });
const seen = { pieces: [], chunks: 0 };

async function streamed() {
  const stream = client.chat.completions.stream({ stream_options: { include_usage: true }, ...request });
  stream.on("content", (piece) => seen.pieces.push(piece));
  stream.on("chunk", () => (seen.chunks += 1));
  return stream.finalChatCompletion();
}

function answer(completion) {
  const [choice] = completion.choices;
  const calls = choice.message.tool_calls ?? [];
  return {
    text: choice.message.content,
    finish_reason: choice.finish_reason,
    usage: completion.usage ?? null,
    tool_calls: calls.map((call) => ({ id: call.id, name: call.function.name, arguments: call.function.arguments })),
    error: null,
  };
}

function failure(error) {
  const { status = null, code = null, message } = error;
  const known = { type: error.constructor.name, status, code, message };
  return { text: seen.pieces.join(""), finish_reason: null, usage: null, tool_calls: [], error: known };
}

const call = mode === "stream" ? streamed : () => client.chat.completions.create(request);
const line = await call().then(answer, failure);
console.log(JSON.stringify({ ...line, pieces: seen.pieces, chunks: seen.chunks }));
