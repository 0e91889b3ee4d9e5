"""A headless Chromium that is driven as a visitor would, and notes what it asks the network for."""

import contextlib
import json
import shutil
import time

BINARY = shutil.which('chromium')
DRIVER = shutil.which('chromedriver')
FLAGS = (
    *('--headless=new', '--no-sandbox', '--disable-dev-shm-usage', '--window-size=1440,1500'),
    *(
        '--disable-background-networking',
        '--disable-component-update',
        '--enable-unsafe-swiftshader',
    ),
)
# Notes what an element says, whenever that changes.
WATCH = """
const line = document.getElementById(arguments[0]);
window.said = [];
new MutationObserver(() => window.said.push(line.innerText))
    .observe(line, {subtree: true, childList: true, characterData: true});
"""


class Browser:
    """One window."""

    def __init__(self):
        from selenium import webdriver
        from selenium.webdriver.chrome.service import Service

        options = webdriver.ChromeOptions()
        options.binary_location = BINARY
        for flag in FLAGS:
            options.add_argument(flag)
        options.set_capability('goog:loggingPrefs', {'performance': 'ALL'})
        self.driver = webdriver.Chrome(options, Service(DRIVER))
        self.urls = set()

    def one(self, css):
        return self.driver.find_element('css selector', css)

    def all(self, css):
        return self.driver.find_elements('css selector', css)

    def open(self, url):
        self.driver.get(url)
        self.until(lambda: self.all('#draw') and self.value('#seeds textarea, #seeds input'))

    def value(self, css):
        return self.one(css).get_property('value')

    def until(self, true, seconds=240):
        """Waits until true() is; returns it."""
        from selenium.common.exceptions import WebDriverException

        end, found = time.monotonic() + seconds, None
        while not found:
            if time.monotonic() > end:
                raise AssertionError(self.one('body').text[-2000:])
            time.sleep(0.1)
            with contextlib.suppress(WebDriverException):  # what was there is drawn anew
                found = true()
        return found

    def click(self, css, number=0):
        element = self.all(css)[number]
        self.driver.execute_script('arguments[0].scrollIntoView({block: "center"})', element)
        element.click()

    def type(self, css, text):
        from selenium.webdriver.common.keys import Keys

        self.one(css).send_keys(Keys.CONTROL, 'a', Keys.NULL, text)

    def choose(self, css, name):
        """Adds a choice of a list, by its name."""
        from selenium.webdriver.common.keys import Keys

        self.click(f'{css} input')
        self.one(f'{css} input').send_keys(name, Keys.ENTER, Keys.TAB)

    def frames(self, button, name):
        """Presses a button: what the line beside the pictures says until they are whole."""
        self.driver.execute_script(WATCH, f'{name}-line')
        self.click(button)
        said = lambda: self.driver.execute_script('return window.said')
        whole = lambda text: (words := text.split()) and words[0] == 'step' and words[1] == words[3]
        self.until(lambda: any(map(whole, said())))
        return [text for text in dict.fromkeys(said()) if text.startswith('step')]

    def paint(self, css, strokes):
        """Drags over an element: strokes from here to there, as shares of its size."""
        from selenium.webdriver import ActionChains

        element = self.one(css)
        self.driver.execute_script('arguments[0].scrollIntoView({block: "center"})', element)
        width, height = element.size['width'], element.size['height']
        place = lambda x, y: (round((x - 0.5) * width), round((y - 0.5) * height))
        for begin, end in strokes:
            (x, y), (to_x, to_y) = place(*begin), place(*end)
            chain = ActionChains(self.driver).move_to_element_with_offset(element, x, y)
            chain.click_and_hold().move_by_offset((to_x - x) // 2, (to_y - y) // 2)
            chain.move_by_offset(to_x - x - (to_x - x) // 2, to_y - y - (to_y - y) // 2)
            chain.release().perform()

    def requests(self):
        """All addresses that were asked for so far."""
        for entry in self.driver.get_log('performance'):
            message = json.loads(entry['message'])['message']
            if message['method'] in ('Network.requestWillBeSent', 'Network.webSocketCreated'):
                about = message['params']
                self.urls.add(about['request']['url'] if 'request' in about else about['url'])
        return self.urls

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.driver.quit()
