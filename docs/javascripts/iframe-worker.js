// Browsers start no web worker for a page that is opened from the disk. Run the worker's script in a hidden frame instead,
// so that the search works there too. The theme's plugin `offline` looks for a polyfill of this name.
if (location.protocol === "file:")
  window.Worker = class extends EventTarget {
    constructor(url) {
      super()
      const frame = document.createElement("iframe")
      frame.hidden = true
      document.body.append(frame)
      this.scope = frame.contentWindow
      this.scope.postMessage = data => this.dispatchEvent(new MessageEvent("message", { data }))
      const load = url =>
        new Promise((resolve, reject) => {
          const script = this.scope.document.createElement("script")
          Object.assign(script, { src: new URL(url, document.baseURI), onload: resolve, onerror: reject })
          this.scope.document.body.append(script)
        })
      this.scope.importScripts = (...urls) => urls.reduce((before, url) => before.then(() => load(url)), Promise.resolve())
      this.loaded = load(url)
    }

    postMessage(data) {
      this.loaded.then(() => this.scope.dispatchEvent(new MessageEvent("message", { data })))
    }
  }
