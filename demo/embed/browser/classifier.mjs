// Classify photos with model.embed.onnx, which resizes and crops inside the graph: onnxruntime-web, in the browser.
import * as ort from './node_modules/onnxruntime-web/dist/ort.wasm.bundle.min.mjs'

ort.env.wasm.numThreads = 1 // more need headers (COOP, COEP) that a plain file server does not send

// Below the photo and read back with it: a browser that hides pictures, or has no canvas so large, gives noise or zeros
const GREYS = [255, 0, 200, 50, 150, 100, 0, 255]

// Upright, as the browser shows it
export async function decode(blob) {
  try {
    return await createImageBitmap(blob, { imageOrientation: 'from-image', premultiplyAlpha: 'none' })
  } catch (error) {
    throw new Error(`this browser cannot read that file (${error.message}); pick another one, as JPEG or PNG`)
  }
}

// Of 8-bit sRGB on white, as in training: uint8 [height, width, 3]
export function pixels(image) {
  const { width, height } = image
  const canvas = Object.assign(document.createElement('canvas'), { width, height: height + GREYS.length })
  const context = canvas.getContext('2d', { willReadFrequently: true })
  const paint = (grey, y, rows) => {
    context.fillStyle = `rgb(${grey}, ${grey}, ${grey})`
    context.fillRect(0, y, width, rows)
  }
  paint(255, 0, height)
  context.drawImage(image, 0, 0)
  GREYS.forEach((grey, row) => paint(grey, height + row, 1))
  const rgba = read(context)
  canvas.width = 0 // a canvas keeps four bytes a pixel
  const seen = GREYS.every((grey, row) => Math.abs(rgba[4 * width * (height + row)] - grey) < 16) // some flip the last bits
  if (!seen) {
    const megapixels = (width * height / 1e6).toFixed(1)
    throw new Error(`this browser lets no page see the ${megapixels} megapixels of this photo; pick a smaller copy or, ` +
      'where it asks beside the address, allow this page the “canvas image data”')
  }
  const rgb = new Uint8Array(width * height * 3)
  for (let from = 0, to = 0; to < rgb.length; from += 4) {
    for (let channel = 0; channel < 3; channel++) rgb[to++] = rgba[from + channel]
  }
  return new ort.Tensor('uint8', rgb, [height, width, 3])
}

function read(context) {
  try {
    return context.getImageData(0, 0, context.canvas.width, context.canvas.height).data
  } catch { // no memory for it, which other browsers tell by zeros
    return []
  }
}

// What the spec's rules make of them: a name, "not sure", or the class for nothing of the kind
export function answer({ classes, guard, rejection }, probabilities, familiarity) {
  if (guard && probabilities[classes.indexOf(guard.absent)] > 1 - guard.presence) return guard.absent
  const most = Math.max(...probabilities)
  const label = classes[probabilities.indexOf(most)]
  if (guard && [guard.absent, guard.unnamed].includes(label)) return 'not sure'
  const score = { max_probability: most, familiarity }[rejection?.rule]
  return score < rejection?.threshold ? 'not sure' : label
}

async function load(folder, name) {
  const response = await fetch(`${folder}/${name}`)
  if (!response.ok) throw new Error(`${folder}/${name} is not there (${response.status})`)
  return response
}

// `folder` is the address of a model folder, `precision` fp32 or int8
export async function open(folder, precision) {
  const { spec } = await (await load(folder, 'model.json')).json()
  if (!['max_probability', 'familiarity', undefined].includes(spec.rejection?.rule)) {
    throw new Error(`the rule ${spec.rejection.rule} is not in this example; see docs/embed.md`)
  }
  const file = precision === 'fp32' ? 'model.embed.onnx' : `model.embed.${precision}.onnx`
  const session = await ort.InferenceSession.create(await (await load(folder, file)).arrayBuffer())
  return {
    spec, file,
    async classify(photo) {
      const { probabilities: { data }, familiarity } = await session.run({ photo })
      const [familiar] = familiarity?.data ?? [] // of a model that has it
      return { label: answer(spec, data, familiar), probabilities: data, familiarity: familiar }
    },
  }
}

// Against the golden vector beside the model: a line for each of its pictures
export async function check({ classify }, folder, precision) {
  const golden = await (await load(folder, 'golden.json')).json()
  const lines = []
  for (const [name, answer] of Object.entries(golden.pictures)) {
    const { probabilities, familiarity } = await classify(pixels(await decode(await (await load(folder, name)).blob())))
    const known = answer.familiarity ?? 0
    const found = Math.max(...answer.probabilities.map((p, i) => Math.abs(p - probabilities[i])),
      Math.abs((familiarity ?? 0) - known) / (4 + Math.abs(known)))
    const allowed = golden.tolerance.web[precision] + answer.decoding
    lines.push(`${found <= allowed ? 'right' : 'wrong'}: ${name} ${found.toFixed(4)} of ${allowed.toFixed(4)} allowed`)
  }
  return lines
}
