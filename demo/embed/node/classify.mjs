// Classify photos with model.embed.onnx, which resizes and crops inside the graph: onnxruntime-node, and sharp to decode.
//   node classify.mjs MODEL_FOLDER photo.jpg …      node classify.mjs MODEL_FOLDER --check      [--int8]
import { readFile } from 'node:fs/promises'
import path from 'node:path'
import { parseArgs } from 'node:util'
import ort from 'onnxruntime-node'
import sharp from 'sharp'

// Upright 8-bit sRGB on white (sharp converts by an embedded profile): uint8 [height, width, 3]
async function decode(file) {
  const { orientation, xmpAsString } = await sharp(file).metadata()
  const told = orientation ? 1 : /tiff:Orientation\W+([1-8])\b/.exec(xmpAsString)?.[1] ?? 1 // by XMP where EXIF has none
  const turn = { 3: 180, 4: 180, 5: 270, 6: 90, 7: 90, 8: 270 }[told] ?? 0
  const photo = sharp(file).autoOrient().flop('2457'.includes(told)).rotate(turn).flatten({ background: 'white' })
  const { data, info } = await photo.toColourspace('srgb').removeAlpha().raw().toBuffer({ resolveWithObject: true })
  return new ort.Tensor('uint8', data, [info.height, info.width, info.channels])
}

// What the spec's rules make of them: a name, "not sure", or the class for nothing of the kind
function answer({ classes, guard, rejection }, probabilities, familiarity) {
  if (guard && probabilities[classes.indexOf(guard.absent)] > 1 - guard.presence) return guard.absent
  const most = Math.max(...probabilities)
  const label = classes[probabilities.indexOf(most)]
  if (guard && [guard.absent, guard.unnamed].includes(label)) return 'not sure'
  const score = { max_probability: most, familiarity }[rejection?.rule]
  return score < rejection?.threshold ? 'not sure' : label
}

async function open(folder, precision) {
  const file = precision === 'int8' ? 'model.embed.int8.onnx' : 'model.embed.onnx'
  const session = await ort.InferenceSession.create(path.join(folder, file))
  const { spec } = JSON.parse(await readFile(path.join(folder, 'model.json'), 'utf8'))
  if (!['max_probability', 'familiarity', undefined].includes(spec.rejection?.rule)) {
    stop(`the rule ${spec.rejection.rule} is not in this example; see docs/embed.md`)
  }
  return async (photo) => {
    const { probabilities: { data }, familiarity } = await session.run({ photo: await decode(photo) })
    const [familiar] = familiarity?.data ?? [] // of a model that has it
    return { label: answer(spec, data, familiar), probabilities: data, familiarity: familiar }
  }
}

// Against the golden vector beside the model; exit status 1 when an answer is not the checkpoint's
async function check(classify, folder, precision) {
  const golden = JSON.parse(await readFile(path.join(folder, 'golden.json'), 'utf8'))
  for (const [name, answer] of Object.entries(golden.pictures)) {
    const { probabilities, familiarity } = await classify(path.join(folder, name))
    const known = answer.familiarity ?? 0
    const found = Math.max(...answer.probabilities.map((p, i) => Math.abs(p - probabilities[i])),
      Math.abs((familiarity ?? 0) - known) / (4 + Math.abs(known)))
    const allowed = golden.tolerance.node[precision] + answer.decoding
    const right = found <= allowed
    console.log(`${right ? 'right' : 'wrong'}: ${name}: the answer differs by ${found.toFixed(4)}, ` +
      `${allowed.toFixed(4)} is allowed`)
    if (!right) process.exitCode = 1
  }
}

function stop(why) {
  console.error(why)
  process.exit(2)
}

const options = { check: { type: 'boolean' }, int8: { type: 'boolean' } }
const { values, positionals: [folder, ...photos] } = parseArgs({ options, allowPositionals: true })
if (!folder) stop('name a model folder: node classify.mjs artifacts/models/resnet34 photo.jpg')
const precision = values.int8 ? 'int8' : 'fp32'
const classify = await open(folder, precision)
if (values.check) await check(classify, folder, precision)
for (const photo of photos) {
  try {
    const { label, probabilities } = await classify(photo)
    console.log([photo, label, Math.max(...probabilities).toFixed(3)].join('\t'))
  } catch (error) {
    console.error(`${photo} gets no answer: ${error.message.split('\n')[0]}`)
    process.exitCode = 1
  }
}
